"""A run on Ray that is terminated from outside, and a plan for programs."""

import json
import signal
import time
from pathlib import Path

import pytest
from flow.worlds import World, vector_world

from indexing.errors import PublishConflict
from indexing.release.lease import Lease, hold_lease
from indexing.store import open_store

pytestmark = pytest.mark.timeout(300)
START_S = 120.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    return vector_world(tmp_path / "world")


def wait_for_work(world: World) -> None:
    """Until the run holds the lease and its workers have written something."""
    deadline = time.monotonic() + START_S
    workspace = Path(str(world.config["workspace"]).removeprefix("file://"))
    while not list(workspace.rglob("*.parquet")):
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.05)


def test_sigterm_ends_a_night_with_143_and_releases_the_lease(world: World) -> None:
    """Ray has a handler of its own, which would end the process with 1 and keep the lease."""
    process = world.start("nightly", "-q")
    try:
        wait_for_work(world)
        process.send_signal(signal.SIGTERM)
        output, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output) == (143, "")
    assert error == "nightcrate: terminated; run again to resume from the last finished step\n"
    with hold_lease(open_store(world.store_url), "the next", wait=False):
        pass
    assert world.releases() == []
    (record,) = world.folder.glob("workspace/runs/*.json")
    assert json.loads(record.read_text())["exit_code"] == 143


def test_a_night_that_has_lost_its_lease_starts_no_further_stage(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = iter([None])

    def check(lease: Lease) -> None:
        if next(checks, 1):
            raise PublishConflict("this run has lost its lease")

    monkeypatch.setattr("indexing.release.lease.Lease.check", check)
    assert world.command("nightly", "-q") == 5
    assert "lost its lease" in capsys.readouterr().err
    assert list(world.folder.glob("workspace/items/*/done.json"))
    assert not list(world.folder.glob("workspace/shards"))


def test_a_plan_as_json_is_one_document(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.command("plan", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["num_rows"] == 300
    assert plan["collections"] == {"tracks": {"items": 300, "shards": 2}}
    assert plan["changes"] is None
