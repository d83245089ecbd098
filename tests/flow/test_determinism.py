"""The same catalogue gives the same bytes: in any workspace, with any number of encoders, after any kill."""

import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from flow.worlds import Night, World, descendants, is_running, shard_digests

from indexing.errors import PublishConflict

pytestmark = pytest.mark.timeout(600)
WAIT_S = 240
LEASE_S = 120


@pytest.fixture(scope="session")
def undisturbed(written_world: World, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A night with two encoders; what a run with one must equal."""
    world = written_world.copied(tmp_path_factory.mktemp("undisturbed") / "world")
    return world.changed(ray={"encode_actors": 2}).run()


@pytest.mark.faults
def test_a_killed_run_keeps_its_finished_buckets_and_the_next_ends_with_the_same_bytes(
    fresh_world: World, undisturbed: Night
) -> None:
    kill_while_encoding(fresh_world)
    kept = bucket_files(fresh_world)
    assert 1 <= len(kept) < 8
    assert not fresh_world.releases()
    with pytest.raises(PublishConflict, match="has the lease, its last sign of life"):  # as far as the store can know
        fresh_world.run()
    age_lease(fresh_world)

    night = fresh_world.run()

    assert {path: state for path, state in bucket_files(fresh_world).items() if path in kept} == kept
    assert night.num_encoded == undisturbed.num_encoded - sum(num_texts(path) for path in kept) > 0
    assert shard_digests(night.release) == shard_digests(undisturbed.release)


def kill_while_encoding(world: World) -> None:
    """SIGKILL to the driver alone, once a bucket is finished; returns when nothing that it started still runs."""
    with world.start() as driver:
        deadline = time.monotonic() + WAIT_S
        while not bucket_files(world):
            assert driver.poll() is None and time.monotonic() < deadline, "expected a finished bucket, got none"
            time.sleep(0.002)
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(driver.pid)}
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    agents = {pid for pid, command in commands.items() if "Agent" in command}  # they take a minute to notice
    while any(is_running(pid) for pid in commands.keys() - agents):
        assert time.monotonic() < deadline, "expected Ray to end with its driver"
        time.sleep(0.05)
    for pid in filter(is_running, agents):
        os.kill(pid, signal.SIGKILL)


def age_lease(world: World) -> None:
    """As if the killed run had been silent for longer than a lease lasts."""
    (path,) = world.folder.glob("store/leases/*.json")
    then = time.time() - LEASE_S - 60
    os.utime(path, (then, then))


def bucket_files(world: World) -> dict[Path, tuple[int, int]]:
    paths = world.folder.glob("workspace/items/*/vectors-*.parquet")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def num_texts(path: Path) -> int:
    return len(set(pq.read_table(path)["fingerprint"].to_pylist()))
