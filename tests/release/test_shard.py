"""A shard that keeps its graph while items are added and deleted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_release import PARAMS, ReleaseMaker, unit_vectors, vector_column

from indexing import open_release
from indexing.dense.exact import exact_search
from indexing.dense.hnsw import build_index
from indexing.errors import DamagedError
from indexing.release.manifest import Collection, Release, Shard, parse_release, release_to_bytes
from indexing.release.shard import ITEMS_SCHEMA
from indexing.release.verify import verify_release
from indexing.store import Store
from indexing.store.blobs import Blob

IDS = [f"item-{number:03}" for number in range(200)]
NEW, NEWER = [f"new-{number}" for number in range(12)], ["item-003", "newest"]
VECTORS, NEW_VECTORS, NEWER_VECTORS = unit_vectors(200), unit_vectors(12, seed=1), unit_vectors(2, seed=2)
GONE = [3, 7, 150, 201]
"""Labels: item-003 has come back with another vector, new-1 was deleted again."""


@pytest.fixture
def collection(maker: ReleaseMaker) -> Collection:
    """One shard, changed on two nights."""
    built = maker.collection("tracks", IDS, VECTORS)
    shard = maker.changed(built.shards[0], GONE[:3], NEW, NEW_VECTORS)
    shard = maker.changed(shard, GONE, NEWER, NEWER_VECTORS)
    return replace(built, num_items=shard.num_items, shards=(shard,))


def live() -> tuple[list[str], np.ndarray]:
    """Ids and vectors that the changed shard holds."""
    ids, vectors = [*IDS, *NEW, *NEWER], np.concatenate([VECTORS, NEW_VECTORS, NEWER_VECTORS])
    keep = [label for label in range(len(ids)) if label not in GONE]
    return [ids[label] for label in keep], vectors[keep]


def publish(maker: ReleaseMaker, store: Store, collection: Collection) -> Release:
    return maker.publish(store, collection)


def test_a_changed_shard_answers_as_exact_search_over_what_is_there_now(
    maker: ReleaseMaker, store: Store, collection: Collection, tmp_path: Path
) -> None:
    release = publish(maker, store, collection)
    opened = open_release(store.url, cache_dir=tmp_path / "cache")
    ids, vectors = live()
    assert release.num_items == len(ids) == 210
    queries = unit_vectors(80, seed=5)
    rows, scores = exact_search(vectors, queries, 10)
    found = opened.search(queries, k=10)
    assert found.item_ids.tolist() == [[ids[row] for row in line] for line in rows]
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)


def test_every_hit_shows_its_own_metadata(
    maker: ReleaseMaker, store: Store, collection: Collection, tmp_path: Path
) -> None:
    publish(maker, store, collection)
    hits = open_release(store.url, cache_dir=tmp_path / "cache").search(unit_vectors(1, seed=5), k=210)[0]
    assert {hit.item_id: hit.metadata["title"] for hit in hits} == {item: f"title of {item}" for item in live()[0]}


def test_a_changed_shard_is_verified_with_all_its_files(
    maker: ReleaseMaker, store: Store, collection: Collection
) -> None:
    release = publish(maker, store, collection)
    report = verify_release(store, release)
    assert (report.num_blobs, report.num_items) == (10, 210)
    assert parse_release(release_to_bytes(release)) == release


def assert_refused(store: Store, release: Release, message: str, tmp_path: Path) -> None:
    """Both by who verifies it and by who opens it."""
    for read in (lambda: verify_release(store, release), lambda: open_release(store.url, cache_dir=tmp_path / "c")):
        with pytest.raises(DamagedError, match=message):
            read()


def other_file(maker: ReleaseMaker, name: str, table: pa.Table) -> Blob:
    pq.write_table(table, maker.folder / name)
    return maker.add_file(maker.folder / name)


def with_tombstones(maker: ReleaseMaker, shard: Shard, labels: pa.Array) -> Shard:
    assert shard.tombstones is not None
    blob = other_file(maker, "x.gone", pa.table({"label": labels}))
    return replace(shard, tombstones=replace(shard.tombstones, labels=blob))


def as_version_1(maker: ReleaseMaker, shard: Shard, ids: list[str], vectors: np.ndarray) -> Shard:
    """The shard as format version 1 has it: deltas without graphs, of which the second has these vectors."""
    assert shard.deltas is not None
    deltas = []
    for delta, names, values in ((shard.deltas[0], NEW, NEW_VECTORS), (shard.deltas[1], ids, vectors)):
        items = pa.table([names, [b"f" * 16] * len(names)], schema=ITEMS_SCHEMA)
        blob = other_file(maker, f"{names[0]}.items", items.append_column("vector", vector_column(values)))
        deltas.append(replace(delta, items=blob, index=None))
    return replace(shard, deltas=tuple(deltas))


def with_graph(maker: ReleaseMaker, shard: Shard, vectors: np.ndarray) -> Shard:
    """With another graph of the second delta."""
    assert shard.deltas is not None
    build_index(vectors, PARAMS, maker.folder / "other.hnsw")
    index = maker.add_file(maker.folder / "other.hnsw")
    return replace(shard, deltas=(shard.deltas[0], replace(shard.deltas[1], index=index)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([3, 7, 150, 214]), "ascending labels below 214"),
        (pa.array([3, 7, 7, 201]), "ascending labels below 214"),
        (pa.array([-1, 7, 150, 201]), "ascending labels below 214"),
        (pa.array([3, 7, 150]), "expected 4 rows, got 3"),
        (pa.array([3, 7, 150, None]), "without nulls"),
        (pa.array(["3", "7", "150", "201"]), "expected label int64"),
    ],
)
def test_tombstones_that_do_not_fit_are_refused(
    maker: ReleaseMaker, store: Store, collection: Collection, labels: pa.Array, message: str, tmp_path: Path
) -> None:
    shard = with_tombstones(maker, collection.shards[0], labels)
    release = publish(maker, store, replace(collection, shards=(shard,)))
    assert_refused(store, release, message, tmp_path)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (NEWER, NEWER_VECTORS * 2, "unit norm"),
        (NEWER, NEWER_VECTORS * np.nan, "unit norm"),
        (NEWER, NEWER_VECTORS.astype(np.float16), "expected vectors of type"),
        (NEWER, NEWER_VECTORS[:, :8] / np.linalg.norm(NEWER_VECTORS[:, :8], axis=1, keepdims=True), "expected vectors"),
        ([*NEWER, "third"], unit_vectors(3), "expected 2 rows, got 3"),
    ],
)
def test_deltas_of_version_1_that_do_not_fit_are_refused(
    maker: ReleaseMaker,
    store: Store,
    collection: Collection,
    ids: list[str],
    vectors: np.ndarray,
    message: str,
    tmp_path: Path,
) -> None:
    shard = as_version_1(maker, collection.shards[0], ids, vectors)
    release = maker.publish(store, replace(collection, shards=(shard,)), format_version=1)
    assert_refused(store, release, message, tmp_path)


def test_an_item_that_came_again_without_a_tombstone_is_found(
    maker: ReleaseMaker, store: Store, collection: Collection
) -> None:
    shard = collection.shards[0]
    assert shard.deltas is not None
    items = pa.table([["item-004", "newest"], [b"e" * 16, b"f" * 16]], schema=ITEMS_SCHEMA)
    again = replace(shard.deltas[1], items=other_file(maker, "again.items", items))
    shard = replace(shard, deltas=(shard.deltas[0], again))
    with pytest.raises(DamagedError, match="expected 210 distinct ids, got 209"):
        verify_release(store, publish(maker, store, replace(collection, shards=(shard,))))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (unit_vectors(3), "expected 2 items, the file says 3"),
        (unit_vectors(2, dim=8), "expected dim 16, the file says"),
    ],
)
def test_graphs_of_deltas_that_do_not_fit_are_refused(
    maker: ReleaseMaker, store: Store, collection: Collection, vectors: np.ndarray, message: str, tmp_path: Path
) -> None:
    shard = with_graph(maker, collection.shards[0], vectors)
    release = publish(maker, store, replace(collection, shards=(shard,)))
    assert_refused(store, release, message, tmp_path)


def test_a_release_of_version_1_answers_with_its_deltas(
    maker: ReleaseMaker, store: Store, collection: Collection, tmp_path: Path
) -> None:
    shard = as_version_1(maker, collection.shards[0], NEWER, NEWER_VECTORS)
    maker.publish(store, replace(collection, shards=(shard,)), format_version=1)
    ids, vectors = live()
    rows, _ = exact_search(vectors, unit_vectors(80, seed=5), 10)
    found = open_release(store.url, cache_dir=tmp_path / "cache").search(unit_vectors(80, seed=5), k=10)
    assert found.item_ids.tolist() == [[ids[row] for row in line] for line in rows]
