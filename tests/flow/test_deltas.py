"""Nights after the first: the graph stays while little has changed, and is rebuilt, as a full build would, when much
has.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.worlds import IDS, VECTORS, Night, World, shard_digests, vector_world

import jobs.nightly
from indexing import open_release
from indexing.dense.exact import exact_search
from indexing.errors import StoreUnavailable, ValidationFailed
from indexing.release.diff import ItemCounts, diff_releases
from indexing.release.rollback import roll_back
from indexing.release.verify import verify_release
from indexing.store import open_store
from indexing.store.cache import BlobCache
from jobs.config.load import load_config
from jobs.inputs.inputs import Inputs
from jobs.plan import make_plan
from jobs.quality.recall import recall_by_score
from jobs.run import Run
from jobs.stages.validate import GatesFailed
from jobs.workspace.records import Built, Prepared, Validated

pytestmark = pytest.mark.timeout(600)
CHANGED = np.random.default_rng(1).normal(size=VECTORS.shape).astype(np.float32)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Night]:
    world = vector_world(tmp_path_factory.mktemp("deltas") / "world")
    return world, world.run()


@pytest.fixture
def world(first: tuple[World, Night], tmp_path: Path) -> World:
    return first[0].copied(tmp_path / "world")


def write(world: World, ids: list[str], vectors: np.ndarray, label: str = "label") -> None:
    columns = {"item_id": ids, "label": [f"{label} {item_id}" for item_id in ids], "vector": list(vectors)}
    pq.write_table(pa.table(columns), world.folder / "vectors.parquet", row_group_size=100)


def with_changes(num_changed: int) -> tuple[list[str], np.ndarray]:
    """The catalogue of the first night with these rows changed, two deleted and three new."""
    vectors = np.concatenate([CHANGED[:num_changed], VECTORS[num_changed:-2], CHANGED[-3:]])
    return [*IDS[:-2], "new-1", "new-2", "new-3"], vectors


def assert_serves(world: World, ids: list[str], vectors: np.ndarray, cache: Path) -> None:
    """The current release is valid, has these items and no others, and finds them as well as one built from scratch."""
    release = world.releases()[-1]
    assert release.num_items == len(ids)
    verify_release(open_store(world.store_url), release)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = open_release(world.store_url, cache_dir=cache).search(unit, k=10)
    assert found.item_ids[:, 0].tolist() == ids
    truth = exact_search(unit, unit, 10)[1]
    assert recall_by_score(found.scores, truth).mean() >= 0.95


def test_a_night_of_few_changes_keeps_the_graphs_and_uploads_little(
    world: World, first: tuple[World, Night], tmp_path: Path
) -> None:
    ids, vectors = with_changes(5)
    write(world, ids, vectors)
    plan = make_plan(load_config(str(world.write_config())))
    assert plan.changes == {"new": 3, "changed": 5, "unchanged": 293, "deleted": 2}
    assert (plan.why_rebuild, plan.num_to_index) == (None, 0)
    night = world.run()
    before, after = shard_digests(first[1].release), shard_digests(night.release)
    assert all(after[name][:2] == before[name][:2] and after[name] != before[name] for name in before)
    assert night.outcome.published is not None
    uploads = night.outcome.published.uploads
    assert uploads.reused == 6  # graph, items and metadata of both shards
    assert uploads.uploaded_bytes < 0.25 * uploads.reused_bytes
    assert_serves(world, ids, vectors, tmp_path / "cache")


def test_too_many_changes_give_the_bytes_of_a_full_build(world: World, tmp_path: Path) -> None:
    ids, vectors = with_changes(60)
    write(world, ids, vectors)
    plan = make_plan(load_config(str(world.write_config())))
    assert (plan.why_rebuild, plan.num_to_index) == (None, len(ids))
    carried = world.run().release
    fresh = world.copied(tmp_path / "fresh")
    shutil.rmtree(fresh.folder / "store")
    shutil.rmtree(fresh.folder / "workspace")
    assert shard_digests(fresh.run().release) == shard_digests(carried)
    assert_serves(world, ids, vectors, tmp_path / "cache")


def test_the_same_catalogue_again_is_neither_validated_nor_published(
    world: World, first: tuple[World, Night], tmp_path: Path
) -> None:
    night = world.run()
    assert not night.seconds
    assert night.release == first[1].release
    table = pq.read_table(world.folder / "vectors.parquet")
    pq.write_table(table.take(np.arange(len(table))[::-1]), world.folder / "vectors.parquet")  # other bytes, same rows
    night = world.run()
    assert "validate" not in night.seconds
    assert night.release == first[1].release


def test_other_metadata_uploads_metadata_alone(world: World, first: tuple[World, Night], tmp_path: Path) -> None:
    write(world, IDS, VECTORS, label="another label")
    night = world.run()
    before, after = shard_digests(first[1].release), shard_digests(night.release)
    assert all(before[name][:2] == after[name][:2] and before[name][2] != after[name][2] for name in before)
    hit = open_release(world.store_url, cache_dir=tmp_path / "cache").search(VECTORS[:1], k=1)[0][0]
    assert hit.metadata["label"] == "another label item-000"


def test_other_parameters_rebuild_everything_and_plan_says_why(world: World, first: tuple[World, Night]) -> None:
    changed = world.changed(index={"M": 9})
    plan = make_plan(load_config(str(changed.write_config())))
    assert (plan.why_rebuild, plan.num_to_index) == ("the index parameters have changed", len(IDS))
    graphs = {digests[0] for digests in shard_digests(changed.run().release).values()}
    assert not graphs & {digests[0] for digests in shard_digests(first[1].release).values()}


def test_one_shard_more_splits_one_and_carries_the_others_over(
    world: World, first: tuple[World, Night], tmp_path: Path
) -> None:
    changed = world.changed(index={"rows_per_shard": 120})
    plan = make_plan(load_config(str(changed.write_config())))
    release = changed.run().release
    before, after = shard_digests(first[1].release), shard_digests(release)
    assert (len(before), len(after)) == (2, 3)
    assert after["tracks/2"] == before["tracks/1"]
    sizes = [shard.num_items for shard in release.collections[0].shards]
    assert (plan.why_rebuild, plan.num_to_index) == (None, sizes[0] + sizes[1])
    fresh = changed.copied(tmp_path / "fresh")
    shutil.rmtree(fresh.folder / "store")
    shutil.rmtree(fresh.folder / "workspace")
    assert shard_digests(fresh.run().release) == after


def test_where_deltas_fail_a_gate_the_shards_are_rebuilt_from_scratch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids, vectors = with_changes(5)
    write(world, ids, vectors)
    validate = jobs.nightly.validate

    def strict(run: Run, inputs: Inputs, prepared: Prepared, built: Built) -> Validated:
        if any(shard.entry.tombstones for shard in built.shards):
            raise GatesFailed("1 of 20 gates fail: made to fail")
        return validate(run, inputs, prepared, built)

    monkeypatch.setattr(jobs.nightly, "validate", strict)
    release = world.run().release
    assert "with deltas 1 of 20 gates fail" in caplog.text
    assert all(shard.deltas is None for collection in release.collections for shard in collection.shards)
    assert_serves(world, ids, vectors, tmp_path / "cache")


@pytest.mark.faults
def test_nights_of_changes_stay_right_and_compact_as_they_must(world: World, tmp_path: Path) -> None:
    ids, vectors = list(IDS), VECTORS.copy()
    num_rows = []
    for night in range(4):
        rows = np.random.default_rng(night).choice(len(ids), 12, replace=False)
        vectors[rows] = np.random.default_rng(100 + night).normal(size=(12, 16))
        ids[rows[0]] = f"night-{night}"
        write(world, ids, vectors)
        shards = [shard for collection in world.run().release.collections for shard in collection.shards]
        assert all(shard.num_rows <= 1.15 * shard.num_base_rows for shard in shards)
        num_rows.append(sum(shard.num_rows for shard in shards))
        assert_serves(world, ids, vectors, tmp_path / "cache")
    assert (np.diff(num_rows) < 0).any(), "expected a compaction in four nights"


def test_vectors_that_drift_too_far_are_not_published_unless_it_is_only_to_warn(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Five of 298 items that stay have vectors of another draw: a mean drift of some 0.017."""
    write(world, *with_changes(5))
    limited = world.changed(validation={"max_drift": 0.01})
    with pytest.raises(ValidationFailed, match=r"all: mean drift of vectors is 0\.01\d+, expected ≤ 0\.01"):
        limited.run()
    assert [release.number for release in world.releases()] == [1]
    assert limited.run("publish", "validation.on_drift=warn").release.number == 2
    assert "mean drift of vectors is 0.01" in caplog.text


def test_a_drift_within_its_limit_lets_the_night_pass(world: World) -> None:
    write(world, *with_changes(5))
    assert world.changed(validation={"max_drift": 0.03}).run().release.number == 2


def test_a_collection_too_small_for_its_shards_is_verified_rolled_back_and_updated(tmp_path: Path) -> None:
    """One row per shard: most key ranges are empty, so it gets fewer shards, none of which is empty."""
    world = vector_world(tmp_path / "world").changed(index={"rows_per_shard": 1, "M": 8, "ef_construction": 60})
    store, cache = open_store(world.store_url), tmp_path / "cache"
    for num_items in (12, 11):
        write(world, IDS[:num_items], VECTORS[:num_items])
        world.run()
        (collection,) = world.releases()[-1].collections
        assert 1 <= len(collection.shards) < num_items
        assert_serves(world, IDS[:num_items], VECTORS[:num_items], cache)
    before, after = world.releases()
    found = diff_releases(before, after, partial(BlobCache(cache).fetch, store))
    assert found.collections["tracks"] == ItemCounts(unchanged=11, deleted=1)
    verify_release(store, roll_back(store, 1))


def test_what_a_night_has_made_is_in_the_release_alone_once_it_is_published(world: World, tmp_path: Path) -> None:
    world.run()
    left = [info.key for info in open_store(f"file://{world.folder}/workspace").list()]
    assert left and not [key for key in left if key.split("/")[0] in {"items", "shards", "builds"}]
    ids, vectors = with_changes(5)
    write(world, ids, vectors)
    shutil.rmtree(world.folder / "workspace")
    night = world.run()
    assert night.outcome.built is not None and night.outcome.built.num_indexed == 0
    assert_serves(world, ids, vectors, tmp_path / "cache")


def test_only_what_is_new_is_measured_until_all_of_it_is_again(world: World) -> None:
    world = world.changed(validation={"full_every": 3})
    measured_in, names = [], []
    for count in range(1, 5):
        ids, vectors = with_changes(count)
        write(world, ids, vectors)
        night = world.run()
        figures = night.release.validation["tracks"]
        measured_in.append(figures.get("measured_in"))
        assert figures["num_items"] == len(ids) and night.outcome.validated is not None
        names.append({gate.name for gate in night.outcome.validated.report.gates})
    assert measured_in == [None, 2, 2, None]
    assert all("self-match" in of_night for of_night in names)
    assert ["self-match of items, measured in release 2" in of_night for of_night in names] == [0, 1, 1, 0]


def test_a_workspace_that_fails_after_the_commit_does_not_fail_the_night(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("the workspace is read-only")

    ids, vectors = with_changes(5)
    write(world, ids, vectors)
    monkeypatch.setattr("jobs.nightly.delete_night", fail)
    assert world.run().release.num_items == len(ids)
    assert "the workspace is read-only; what the night has made stays there" in caplog.text
