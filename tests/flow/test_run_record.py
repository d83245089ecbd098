"""The record that every run leaves in its workspace, and prints with --json."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flow.worlds import IDS, World, vector_world

from indexing.errors import DataError, PublishConflict, StoreUnavailable, ValidationFailed
from indexing.release.codec import from_plain
from indexing.store import open_store
from jobs.run_record import RunRecord, keep_record

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return vector_world(tmp_path / "world")


def kept(world: World) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(world.folder.glob("workspace/runs/*.json"))]


def test_a_night_prints_its_record_as_json_alone_and_keeps_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.command("nightly", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert kept(world) == [printed]
    record = from_plain(RunRecord, printed)
    assert (record.command, record.exit_code, record.error, record.release, record.is_new) == (
        "nightly",
        0,
        None,
        1,
        True,
    )
    assert [stage.name for stage in record.stages] == ["prepare", "encode", "build", "validate", "publish"]
    assert record.report and record.report.collections["tracks"].num_items == len(IDS)
    assert record.started_at <= record.ended_at
    assert (world.folder / "workspace" / record.key).exists()
    assert world.command("plan") == 0
    assert len(kept(world)) == 1


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (DataError("bad rows"), 3),
        (ValidationFailed("a gate"), 4),
        (PublishConflict("another\nrun"), 5),
        (StoreUnavailable("away"), 6),
        (ZeroDivisionError("oh"), 70),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_fails_leaves_its_exit_code_and_the_line_that_it_has_ended_with(
    world: World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    exit_code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("jobs.nightly.run_night", fail)
    assert world.command("encode", "--json") == exit_code
    output = capsys.readouterr()
    (record,) = kept(world)
    assert json.loads(output.out) == record
    assert (record["command"], record["exit_code"], record["stages"]) == ("encode", exit_code, [])
    assert output.err == f"nightcrate: {record['error']}\n"


def test_a_record_that_cannot_be_kept_hides_no_failure(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("bad rows")

    monkeypatch.setattr("jobs.nightly.run_night", fail)
    (world.folder / "workspace").mkdir()
    (world.folder / "workspace" / "runs").write_text("in the way")
    assert world.command("nightly") == 3
    assert capsys.readouterr().err == "nightcrate: bad rows\n"


def test_a_workspace_keeps_the_newest_records(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.run_record.NUM_KEPT", 3)
    monkeypatch.setattr("jobs.nightly.run_night", lambda *_: 1 / 0)
    world.command("nightly", "--json")
    record = from_plain(RunRecord, json.loads(capsys.readouterr().out))
    store = open_store(str(tmp_path / "other"))
    store.put("runs/note.txt", b"of somebody else")
    for hour in (4, 1, 3, 2, 5):
        keep_record(store, replace(record, started_at=f"2026-01-31T0{hour}:00:00+00:00", id=str(hour)))
    assert [info.key for info in store.list("runs/")] == [
        f"runs/20260131T0{hour}0000Z-{hour}.json" for hour in (3, 4, 5)
    ] + ["runs/note.txt"]


def test_a_dry_run_has_no_record_to_print(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.command("nightly", "--dry-run", "--json") == 2
    assert "expected --dry-run or --json, got both" in capsys.readouterr().err
