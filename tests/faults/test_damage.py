"""Thousands of damaged release files and hundreds of damaged blobs: refused by name, no crash, hang or wrong answer."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faults.conftest import GetNights
from faults.damage import Target, try_blob, try_release_file
from faults.nights import copy_store
from support.report import Trials

from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import release_key, release_to_bytes
from indexing.release.signing import sign_release
from indexing.store import open_store

LIMIT_S = 120.0
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def target(get_nights: GetNights, tmp_path: Path) -> Target:
    """Both nights' releases of the tiny encoder; the current one, which has deltas, signed."""
    store = open_store(f"file://{tmp_path}/store")
    copy_store(open_store(get_nights("encoder").reference.store_url), store)
    key, public = Ed25519PrivateKey.generate(), tmp_path / "public.pem"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    number = release_numbers(store)[-1]
    store.put(release_key(number), release_to_bytes(sign_release(read_release(store), key)))
    return Target(store.url, number, public)


@pytest.fixture
def guarded() -> Iterator[Callable[..., str]]:
    """Calls a function in a separate process, so that a crash or a hang there is a failure here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=LIMIT_S)


def run_all(
    guarded: Callable[..., str], trials: Trials, function: Callable[..., str], target: Target, seeds: range, *rest: bool
) -> None:
    problems = {}
    for seed in seeds:
        trials.tried()
        if problem := guarded(function, target, seed, *rest):
            problems[seed] = problem
        else:
            trials.held()
    assert problems == {}


@pytest.mark.case(12)
@pytest.mark.parametrize("num_cases", [100, pytest.param(1500, marks=pytest.mark.faults)])
def test_a_reader_with_a_key_refuses_every_altered_release_file(
    guarded: Callable[..., str], target: Target, num_cases: int, trials: Trials
) -> None:
    run_all(guarded, trials, try_release_file, target, range(num_cases), True)


@pytest.mark.case(12, 13)
@pytest.mark.parametrize("num_cases", [100, pytest.param(1500, marks=pytest.mark.faults)])
def test_an_altered_release_file_is_refused_or_changes_no_answer(
    guarded: Callable[..., str], target: Target, num_cases: int, trials: Trials
) -> None:
    run_all(guarded, trials, try_release_file, target, range(num_cases), False)


@pytest.mark.case(11)
@pytest.mark.parametrize("num_cases", [24, pytest.param(240, marks=pytest.mark.faults)])
def test_an_altered_blob_is_refused_by_name_and_an_open_reader_keeps_serving(
    guarded: Callable[..., str], target: Target, num_cases: int, trials: Trials
) -> None:
    run_all(guarded, trials, try_blob, target, range(num_cases))
