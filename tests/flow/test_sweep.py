"""prune --workspace: what no recent run has used is deleted, and what the next night needs is not."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flow.worlds import World, make_config, vector_world, write_vectors
from support.inline_ray import run_inline

from indexing.errors import PublishConflict
from indexing.release.codec import encode_canonical
from indexing.release.registry import AcceptedEncoder, delete_encoders, entry_key, files_prefix, unused_encoders
from indexing.store import Store, open_store
from jobs.__main__ import main
from jobs.workspace.sweep import apply_sweep, plan_sweep

pytestmark = pytest.mark.timeout(300)
DAY_S = 86_400.0


def make_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3 * DAY_S,) * 2)


@pytest.fixture
def workspace(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "workspace"))


@pytest.fixture
def age(tmp_path: Path) -> Callable[[], None]:
    return lambda: make_old(tmp_path / "workspace")


def test_a_night_after_a_prune_of_its_workspace_finds_all_that_those_before_have_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTCRATE_CACHE", str(tmp_path / "cache"))
    world = vector_world(tmp_path / "world")
    built = []
    for num_items in (200, 150):  # of which none has published yet
        write_vectors(world.folder, num_items)
        for stage in ("encode", "build"):
            assert world.command(stage, "-q") == 0
        built.append(world.run("build").outcome.built)
    first, second = ({blob.sha256 for shard in one.shards for _, blob in shard.entry.blobs()} for one in built if one)
    workspace = world.folder / "workspace"
    (workspace / "mine.txt").write_text("not of nightcrate")
    records = sorted(workspace.glob("runs/*.json"), key=lambda path: path.stat().st_mtime_ns)
    make_old(workspace)
    for day, path in enumerate(records, start=1):  # two for each catalogue
        record = {**json.loads(path.read_text()), "started_at": f"2026-01-0{day}T00:00:00+00:00"}
        path.unlink()
        (workspace / "runs" / f"2026010{day}T000000Z-{record['id']}.json").write_text(json.dumps(record))
    for name in ("old", "used"):
        (tmp_path / "cache" / "models" / name).mkdir(parents=True)
    os.utime(tmp_path / "cache" / "models" / "old", (1, 1))
    capsys.readouterr()
    options = ("prune", world.store_url, "--workspace", f"file://{workspace}")
    assert main([*options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["models_to_delete"] == [str(tmp_path / "cache" / "models" / "old")]
    doomed = {info["key"].rpartition("/")[2] for info in plan["workspace_to_delete"]}
    assert not second & doomed
    assert doomed > first - second
    assert main([*options, "--apply"]) == 0
    assert capsys.readouterr().out.endswith("unfinished uploads, and the rest as listed\n")
    assert len(list(workspace.glob("items/*/done.json"))) == 1 and (workspace / "mine.txt").exists()
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == ["used"]
    night = world.run()
    assert {shard.index.sha256 for shard in night.release.collections[0].shards} <= second
    assert not {"prepare", "build"} & night.seconds.keys()


def test_rows_that_were_converted_to_parquet_are_deleted_once_no_recent_run_reads_them(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_inline(monkeypatch)
    monkeypatch.setenv("NIGHTCRATE_CACHE", str(tmp_path / "cache"))
    world = World(tmp_path, make_config(tmp_path, tiny_model)).changed(
        catalogue={
            "path": f"{tmp_path}/rows.csv",
            "collections": {"tracks": {"item_types": ["track"]}},
            "text": {"default": "{title}"},
        }
    )
    folders = []
    for title in ("balark", "celark"):
        (tmp_path / "rows.csv").write_text(f"item_id,title\n1,{title}\n2,dilark fomint\n")
        assert world.command("nightly", "-q") == 0
        folders.append({path.name for path in (tmp_path / "workspace" / "converted").iterdir()})
    records = sorted((tmp_path / "workspace" / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    make_old(tmp_path / "workspace")
    for day, path in enumerate(records, start=1):
        record = json.loads(path.read_text()) | {"started_at": f"2026-01-0{day}T00:00:00+00:00"}
        path.unlink()
        (tmp_path / "workspace" / "runs" / f"2026010{day}T000000Z-{record['id']}.json").write_text(json.dumps(record))
    assert main(["prune", world.store_url, "--workspace", f"file://{tmp_path}/workspace", "--apply"]) == 0
    left = {path.parent.name for path in (tmp_path / "workspace" / "converted").glob("*/*")}
    assert left == folders[1] - folders[0]
    assert len(folders[1]) == 2


def test_without_a_record_of_a_run_nothing_is_deleted(
    workspace: Store, tmp_path: Path, age: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as after an upgrade, or with the address of something else."""
    store = open_store(str(tmp_path / "store"))
    workspace.put("vectors/e/0of8.parquet", b"expensive")
    age()
    assert main(["prune", store.url, "--workspace", workspace.url, "--apply"]) == 2
    assert "expected the record of a run that has ended well" in capsys.readouterr().err
    assert workspace.head("vectors/e/0of8.parquet")


def test_a_sweep_that_loses_its_lease_stops_and_has_deleted_markers_first(
    workspace: Store, age: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.workspace.sweep.BATCH", 1)
    for key in ("builds/b/a.parquet", "builds/b/done.json", "items/a/items-00000.parquet"):
        workspace.put(key, b"{}")
    age()
    sweep, checks = plan_sweep(workspace, [], DAY_S), iter([None])

    def check() -> None:
        if next(checks, 1):
            raise PublishConflict("lost")

    with pytest.raises(PublishConflict):
        apply_sweep(workspace, sweep, check)
    assert [info.key for info in workspace.list()] == ["builds/b/a.parquet", "items/a/items-00000.parquet"]


def test_unfinished_uploads_of_a_workspace_are_aborted_once_old(workspace: Store, tmp_path: Path) -> None:
    workspace.put("rates.json", b"{}")
    for name, is_old in (("old", True), ("young", False)):
        path = tmp_path / "workspace" / ".tmp" / f"{name}.{'0' * 32}"
        path.touch()
        os.utime(path, (1, 1) if is_old else None)
    sweep = plan_sweep(workspace, [], DAY_S)
    assert [upload.key for upload in sweep.to_abort] == ["old"]
    apply_sweep(workspace, sweep, lambda: None)
    assert [upload.key for upload in workspace.list_uploads()] == ["young"]


def test_files_of_encoders_stay_while_newest_or_released_or_young(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    digests = {name: name * 64 for name in "abcd"}  # a: superseded, b: of a release, c: young, d: the newest
    for name, digest in digests.items():
        store.put(f"{files_prefix(digest)}/config.json", b"")
        if name != "c":
            make_old(tmp_path / "store" / files_prefix(digest))
    entry = AcceptedEncoder(
        format_version=1,
        number=1,
        parent=None,
        digest=digests["d"],
        base_digest="",
        interactions_fingerprint="",
        catalogue_fingerprint="",
        config_fingerprint="",
        created_at="",
        writer_id="",
        metrics=None,
    )
    store.put(entry_key(1), encode_canonical(entry))
    files = unused_encoders(store, [digests["b"]], DAY_S)
    assert [info.key for info in files] == [f"{files_prefix(digests['a'])}/config.json"]
    store.put(files[0].key, b"accepted again")
    assert delete_encoders(store, files, lambda: None) == 0
    make_old(tmp_path / "store" / files_prefix(digests["a"]))
    assert delete_encoders(store, unused_encoders(store, [digests["b"]], DAY_S), lambda: None) == 1
