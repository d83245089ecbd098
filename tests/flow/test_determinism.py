"""The same catalogue gives the same bytes: in another workspace, with another number of encoders, after a kill."""

import signal
import time
from pathlib import Path

from flow.worlds import Night, World, descendants, is_running, shard_digests

CHUNK_WAIT_S = 120


def test_a_fresh_workspace_and_two_encoders_give_the_same_bytes(fresh_world: World, first_night: Night) -> None:
    night = fresh_world.changed(ray={"encode_actors": 2}).run()
    assert night.num_encoded == first_night.num_encoded
    assert shard_digests(night.release) == shard_digests(first_night.release)


def test_a_killed_run_keeps_its_finished_chunks_and_a_rerun_converges(fresh_world: World, first_night: Night) -> None:
    kill_while_encoding(fresh_world)
    kept = chunk_files(fresh_world)
    assert 1 <= len(kept) < 8
    assert not fresh_world.releases()

    night = fresh_world.run()

    assert {path: state for path, state in chunk_files(fresh_world).items() if path in kept} == kept
    assert 0 < night.num_encoded < first_night.num_encoded
    assert night.num_encoded == first_night.num_encoded - sum(num_texts(path) for path in kept)
    assert shard_digests(night.release) == shard_digests(first_night.release)


def kill_while_encoding(world: World) -> None:
    """SIGKILL to the driver alone, once a chunk is finished; returns when all that it had started is gone."""
    with world.start() as driver:
        deadline = time.monotonic() + CHUNK_WAIT_S
        while not chunk_files(world):
            assert driver.poll() is None and time.monotonic() < deadline, "expected a finished chunk, got none"
            time.sleep(0.002)
        children = descendants(driver.pid)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "expected Ray to end with its driver"
        time.sleep(0.05)


def chunk_files(world: World) -> dict[Path, tuple[int, int]]:
    paths = world.folder.glob("workspace/vectors/*/*.parquet")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def num_texts(path: Path) -> int:
    import pyarrow.parquet as pq

    return len(set(pq.read_table(path)["fingerprint"].to_pylist()))
