"""SIGKILL anywhere: a rerun publishes what an undisturbed run would have, and nobody ever sees half a release."""

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from faults.conftest import GetNights
from faults.kills import KillAtWrites, Reader, check_whole, kill_all, wait_for, wait_until_gone
from faults.nights import LIMIT_S, Nights, content, expire_lease
from flow.shared_ray import SharedRay, command_line
from flow.worlds import World, descendants
from support.fault_proxy import FaultProxy
from support.report import Trials

from indexing.release.retention import apply_prune, plan_prune
from indexing.store import open_store
from indexing.store.blobs import blob_key

pytestmark = pytest.mark.timeout(600)  # a dozen runs, each a start of Ray workers

RAYLET_EXIT_S = 90.0
OTHER_WORKER_STEPS = ("/ids-", "/display-", "/new-", "/shards/")

QUICK_STEPS = ("/builds/", "/releases/")
"""The end of a stage, and the commit."""


@pytest.fixture
def nights(get_nights: GetNights, request: pytest.FixtureRequest) -> Nights:
    return get_nights(request.param)


@pytest.fixture
def world(nights: Nights, tmp_path: Path, s3_store_url: str, proxy: FaultProxy) -> World:
    """Before the second night, on S3 through the proxy."""
    return nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)


@pytest.fixture
def reader(world: World) -> Iterator[Reader]:
    with Reader(world.store_url) as reader:
        yield reader


def on(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("nights", [kind], indirect=True)


def end_of(driver: "subprocess.Popen[str]") -> tuple[int, str]:
    """(exit status, standard error); never a hang."""
    try:
        _, errors = driver.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise
    return driver.returncode, errors


def run_until_killed_no_more(world: World, ray: SharedRay, killer: KillAtWrites, trials: Trials) -> None:
    """Runs again and again; each driver is killed at the first write at which none was killed before."""
    while True:
        with world.start("nightly", **ray.driver_environment()) as driver:
            killer.arm(driver.kill)
            status, errors = end_of(driver)
        is_killed = status == -signal.SIGKILL
        trials.tried(is_killed)
        check_whole(open_store(world.store_url))
        if not is_killed:
            assert status == 0, errors
            return
        expire_lease(open_store(world.store_url))
        trials.held()


def check_converged(world: World, nights: Nights, reader: Reader) -> None:
    """One new release with the digests of an undisturbed run, complete at all times; leftovers that prune deletes."""
    store = open_store(world.store_url)
    first, second = world.releases()
    assert content(first) == content(nights.first)
    assert content(second) == content(nights.second)
    wait_for(lambda: 2 in reader.seen, 20, "the reader to see release 2")
    assert reader.seen == [1, 2]
    assert not reader.problems
    assert len(store.list_uploads()) <= 16
    time.sleep(1.1)  # S3 stamps whole seconds
    with patch("indexing.release.retention.MIN_AGE_S", 0.0):  # nobody can make S3's objects old
        apply_prune(store, plan_prune(store, keep_last=2, min_age_s=0), lambda: None)
    listed = {blob_key(sha256) for release in (first, second) for sha256 in release.blobs()}
    assert {info.key for info in store.list("blobs/")} == listed
    assert store.list_uploads() == ()


@pytest.mark.case(1)
@on("vectors")
def test_a_driver_killed_at_the_end_of_a_stage_and_at_the_commit_converges(
    world: World, nights: Nights, shared_ray: SharedRay, proxy: FaultProxy, reader: Reader, trials: Trials
) -> None:
    killer = KillAtWrites(lambda step: "PUT" in step and any(name in step for name in QUICK_STEPS))
    proxy.plan = killer
    run_until_killed_no_more(world, shared_ray, killer, trials)
    check_converged(world, nights, reader)
    # Those of the night; the next finds release 2 there and has nothing to do.
    assert len(killer.killed_at) == 4
    assert killer.killed_at[3] == ("PUT store/releases/00000000000000000002.json", "after")


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.case(1)
@on("encoder")
def test_a_driver_killed_before_and_after_every_write_of_a_night_converges(
    world: World, nights: Nights, shared_ray: SharedRay, proxy: FaultProxy, reader: Reader, trials: Trials
) -> None:
    proxy.plan = killer = KillAtWrites()
    run_until_killed_no_more(world, shared_ray, killer, trials)
    check_converged(world, nights, reader)
    assert len(killer.killed_at) >= 45


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.case(1)
@pytest.mark.parametrize("seed", [1, 2, 3])
@on("vectors")
def test_a_driver_killed_at_random_times_on_a_folder_converges(
    nights: Nights, shared_ray: SharedRay, tmp_path: Path, seed: int, trials: Trials
) -> None:
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    store, dice = open_store(world.store_url), random.Random(seed)
    with Reader(world.store_url) as reader:
        for _ in range(8):
            trials.tried()
            with world.start("nightly", **shared_ray.driver_environment()) as driver:
                time.sleep(dice.uniform(2.0, 6.0))
                driver.kill()
                end_of(driver)
            check_whole(store)
            expire_lease(store)
            trials.held()
        with world.start("nightly", **shared_ray.driver_environment()) as driver:
            assert end_of(driver)[0] == 0
        check_converged(world, nights, reader)


def kill_workers_at(
    world: World, ray: SharedRay, proxy: FaultProxy, steps: tuple[str, ...], num_kills: int, trials: Trials
) -> None:
    """One run; all that works for it is killed, at writes that workers make, `num_kills` times."""
    proxy.plan = killer = KillAtWrites(lambda step: "PUT" in step and any(name in step for name in steps))

    others = ray.busy_workers()

    def kill() -> None:
        trials.tried()
        kill_all(pid for pid in ray.busy_workers() if pid not in others)
        if len(killer.killed_at) < num_kills:
            killer.arm(kill)

    with world.start("nightly", **ray.driver_environment()) as driver:
        killer.arm(kill)
        status, errors = end_of(driver)
    assert status == 0, errors
    assert len(killer.killed_at) == num_kills
    trials.held(num_kills)


@pytest.mark.case(2)
@pytest.mark.parametrize("step", ["/shards/", "/blobs/"])
@on("vectors")
def test_workers_killed_while_they_build_or_upload_are_replaced(
    world: World,
    nights: Nights,
    shared_ray: SharedRay,
    proxy: FaultProxy,
    reader: Reader,
    step: str,
    trials: Trials,
) -> None:
    kill_workers_at(world, shared_ray, proxy, (step,), 2, trials)
    check_converged(world, nights, reader)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.case(2)
@pytest.mark.parametrize("steps", [("/vectors-",), OTHER_WORKER_STEPS, ("/blobs/",)])
@on("encoder")
def test_workers_killed_while_they_encode_build_or_upload_are_replaced(
    world: World,
    nights: Nights,
    shared_ray: SharedRay,
    proxy: FaultProxy,
    reader: Reader,
    steps: tuple[str, ...],
    trials: Trials,
) -> None:
    kill_workers_at(world, shared_ray, proxy, steps, 3, trials)
    check_converged(world, nights, reader)


def kill_raylet(world: World, proxy: FaultProxy, kill_at: Callable[[str], bool]) -> None:
    """One run on a Ray of its own, whose raylet dies at a write: it ends in bounded time, with exit code 6, or with 1
    where Ray's core ends the process before Python hears of it.
    """
    proxy.plan = killer = KillAtWrites(kill_at)
    with world.start("nightly") as driver:
        family: set[int] = set()

        def kill() -> None:
            family.update(descendants(driver.pid))
            assert kill_all(pid for pid in family if "raylet/raylet" in command_line(pid)) == 1

        killer.arm(kill)
        try:
            _, errors = driver.communicate(timeout=RAYLET_EXIT_S)
        finally:
            driver.kill()
            kill_all(family | descendants(driver.pid))
    assert killer.killed_at, errors
    assert driver.returncode in (1, 6), errors
    assert "Traceback" not in errors
    wait_until_gone(family)


@pytest.mark.case(2)
@pytest.mark.faults
@on("vectors")
def test_a_run_whose_raylet_is_killed_ends_and_a_rerun_converges(
    world: World, nights: Nights, shared_ray: SharedRay, proxy: FaultProxy, reader: Reader
) -> None:
    kill_raylet(world, proxy, lambda step: "PUT" in step and "/shards/" in step)
    expire_lease(open_store(world.store_url))
    with world.start("nightly", **shared_ray.driver_environment()) as driver:
        assert end_of(driver)[0] == 0
    check_converged(world, nights, reader)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.case(2)
@on("encoder")
def test_a_run_whose_raylet_is_killed_at_any_stage_ends_and_a_rerun_converges(
    world: World, nights: Nights, shared_ray: SharedRay, proxy: FaultProxy, reader: Reader, trials: Trials
) -> None:
    for step in ("/new-", "/vectors-", "/shards/", "/blobs/"):
        trials.tried()
        kill_raylet(world, proxy, lambda name, step=step: "PUT" in name and step in name)  # type: ignore[misc]
        check_whole(open_store(world.store_url))
        expire_lease(open_store(world.store_url))
        trials.held()
    with world.start("nightly", **shared_ray.driver_environment()) as driver:
        assert end_of(driver)[0] == 0
    check_converged(world, nights, reader)
