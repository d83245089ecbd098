"""A workspace that has lost files of artifacts whose markers are there: what is lost is not done, and is made again."""

import shutil
from pathlib import Path

import pytest
from flow.worlds import IDS, Night, World, shard_digests, vector_world, write_vectors

from indexing.errors import ObjectNotFound, StoreUnavailable
from indexing.release.verify import verify_release
from indexing.store import S3Settings, Store, open_store
from indexing.store.blobs import blob_key
from jobs.inputs.inputs import Inputs
from jobs.nightly import preflight_once, remaking_lost
from jobs.run import Run
from jobs.stages.validate import GatesFailed, validate
from jobs.workspace.artifact import Artifact
from jobs.workspace.records import Built, Prepared, Validated

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Night]:
    world = vector_world(tmp_path_factory.mktemp("lost") / "world")
    return world, world.run()


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """All stages have passed, and nothing is published yet."""
    world = vector_world(tmp_path_factory.mktemp("unpublished") / "world")
    world.run("validate")
    return world


@pytest.mark.parametrize("lost", ["items/*/vectors-*.parquet", "items/*/ids-*.parquet", "shards/sha256/*"])
def test_a_night_makes_again_what_the_workspace_has_lost(
    first: tuple[World, Night], unpublished: World, tmp_path: Path, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The markers say that all of it is done."""
    world = unpublished.copied(tmp_path / "world")
    for path in world.folder.glob("workspace/validations/*"):
        shutil.rmtree(path)
    if lost.startswith("items"):
        for path in [*world.folder.glob("workspace/builds/*"), *world.folder.glob("workspace/shards/*")]:
            shutil.rmtree(path)
    found = list(world.folder.glob(f"workspace/{lost}"))
    assert found
    for path in found:
        path.unlink()
    night = world.run()
    assert shard_digests(night.release) == shard_digests(first[1].release)
    assert night.release.num_items == len(IDS)
    assert caplog.text.count("what the workspace has lost is made again") == 1


def test_one_stage_alone_says_which_stage_is_to_be_run_again(
    first: tuple[World, Night], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = first[0].copied(tmp_path / "world")
    for name in ("store", "workspace/validations", "workspace/shards"):
        shutil.rmtree(world.folder / name)
    assert world.command("validate", "-q") == 2
    assert "prepare is not done for this catalogue and configuration: run encode first" in capsys.readouterr().err


def test_files_that_are_lost_again_end_the_run_with_exit_6(first: tuple[World, Night]) -> None:
    def lose(inputs: object) -> None:
        raise ObjectNotFound("expected it to exist")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.nightly.forget_work", lambda *_: None)
        with pytest.raises(StoreUnavailable, match="though it was made just now"):
            remaking_lost(None, None, lose)  # type: ignore[arg-type, type-var]


def test_vectors_that_the_release_has_lost_are_made_again_also_where_only_a_rebuild_shows_it(
    first: tuple[World, Night], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their size is right, so that deltas are put next to the graph, which is not read; their gates fail."""
    world = first[0].copied(tmp_path / "world")
    write_vectors(world.folder, len(IDS) - 10)
    store = open_store(world.store_url)
    for shard in first[1].release.collections[0].shards:
        store.put(blob_key(shard.index.sha256), bytes(shard.index.size_bytes))
    seen: list[bool] = []

    def validate_whole(run: Run, inputs: Inputs, prepared: Prepared, built: Built) -> Validated:
        seen.append(built.has_changes)
        if built.has_changes:
            raise GatesFailed("deltas are not good enough")
        return validate(run, inputs, prepared, built)

    monkeypatch.setattr("jobs.nightly.validate", validate_whole)
    release = world.run().release
    assert seen == [True, True, False]
    assert (release.number, release.num_items) == (2, len(IDS) - 10)
    verify_release(store, release)


def test_an_artifact_without_one_of_its_files_is_not_complete(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    artifact = Artifact(store, "a", str)
    store.put("a/done.json", b'"record"')
    store.put("a/one", b"")
    store.put("a/folder/two", b"")
    assert artifact.read() == artifact.read("one", "folder/") == "record"
    assert artifact.read("one", "two") is None
    artifact.forget()
    assert artifact.read() is None


def test_the_preflight_is_remembered_for_a_url_and_its_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that has moved to another server has not passed yet."""
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-central-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    tried: list[str] = []
    monkeypatch.setattr("jobs.nightly.preflight", lambda store: tried.append(store.address()))
    workspace = open_store(str(tmp_path))

    def at(endpoint: str | None) -> Store:
        return open_store("s3://music/releases", S3Settings(endpoint=endpoint))

    for endpoint in ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:1", "http://127.0.0.1:2"):
        preflight_once(at(endpoint), workspace)
    assert tried == [f"s3://music/releases at http://127.0.0.1:{port}" for port in (1, 2)]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:3")
    preflight_once(at(None), workspace)
    assert len(tried) == 3
