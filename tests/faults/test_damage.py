"""Thousands of damaged release files and hundreds of damaged blobs: refused by name, no crash, hang or wrong answer."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from faults.damage import Target, try_blob, try_release_file
from flow.worlds import SYLLABLES
from support.report import Trials
from support.tiny_release import ReleaseMaker

from indexing.encoder import EncoderSettings, encoder_files, load_encoder
from indexing.release.manifest import release_key, release_to_bytes
from indexing.release.signing import sign_release
from indexing.store import open_store

LIMIT_S = 120.0
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Target:
    """Two releases of the tiny encoder; the current one, which has a delta and tombstones, is signed."""
    folder = tmp_path_factory.mktemp("target")
    maker, store = ReleaseMaker(folder), open_store(f"file://{folder}/store")
    encoder = load_encoder(tiny_model, EncoderSettings(model=str(tiny_model), device="cpu"))
    texts = [f"{first} {second}" for first in SYLLABLES[:16] for second in SYLLABLES[:16]]
    vectors, new = encoder.encode(texts), encoder.encode(SYLLABLES[:3])
    shows, built = maker.collection("shows", texts[200:], vectors[200:]), maker.collection("tracks", texts, vectors)
    shard = maker.changed(built.shards[0], [3, 7], SYLLABLES[:3], new)
    (folder / "report").write_text("{}")
    options: dict[str, Any] = {"encoder": maker.encoder(tiny_model, encoder_files(tiny_model), encoder.dim)}
    options |= {"dim": encoder.dim, "report": maker.add_file(folder / "report")}
    maker.publish(store, built, shows, **options)
    changed = maker.publish(store, replace(built, num_items=shard.num_items, shards=(shard,)), shows, **options)
    key, public = Ed25519PrivateKey.generate(), folder / "public.pem"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    store.put(release_key(changed.number), release_to_bytes(sign_release(changed, key)))
    return Target(store.url, changed.number, public)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Callable[..., str]]:
    """Calls a function in a separate process, so that a crash or a hang there is a failure here."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=LIMIT_S)


def run_all(
    guarded: Callable[..., str], trials: Trials, function: Callable[..., str], target: Target, seeds: range, *rest: bool
) -> None:
    problems = {}
    assert target.expected  # found here and once, not in every case
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
