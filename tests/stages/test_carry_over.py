"""What a shard becomes when its rows change: planned from ids and fingerprints, then written next to its graph."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_release import PARAMS, unit_vectors

from indexing.dense.hnsw import build_index
from indexing.release.manifest import Shard
from indexing.release.shard import ITEMS_SCHEMA, open_graph, read_live_rows, read_metadata
from indexing.store import open_store
from indexing.store.blobs import Blob, blob_key, hash_file
from jobs.stages.carry_over import MAX_DELTAS, match_rows, plan_changes, update_shard
from jobs.workspace.blobs import built_blobs, put_blob, workspace_key
from jobs.workspace.parquet import parquet_bytes
from jobs.workspace.records import BuiltGraph

Row = tuple[str, int]
"""An item and the version of its content."""
BASE = [(f"item-{number:02}", 0) for number in range(40)]


def make_items(rows: list[Row]) -> pa.Table:
    fingerprints = [f"version {version}".encode().ljust(16) for _, version in rows]
    return pa.table([[name for name, _ in rows], fingerprints], schema=ITEMS_SCHEMA)


def make_display(rows: list[Row], popularity: int = 0) -> pa.Table:
    return pa.table({"title": [f"{name} {version}" for name, version in rows], "popularity": [popularity] * len(rows)})


def vectors_of(items: pa.Table) -> np.ndarray:
    """float32 (num_items, 16), each from its id and fingerprint alone."""
    seeds = [
        int.from_bytes(hashlib.blake2b(f"{row}".encode(), digest_size=4).digest(), "big") for row in items.to_pylist()
    ]
    return np.concatenate([unit_vectors(1, seed=seed) for seed in seeds])


class Shards:
    """A shard that follows its rows night by night, as `build` and `publish` would have it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace, self.store = open_store(f"file://{folder}/workspace"), open_store(f"file://{folder}/store")

    def build(self, rows: list[Row]) -> Shard:
        return self.publish(
            Shard(
                number=0,
                num_items=len(rows),
                index=self.put_graph(make_items(rows)).index,
                items=put_blob(self.workspace, parquet_bytes(make_items(rows))),
                metadata=put_blob(self.workspace, parquet_bytes(make_display(rows))),
            )
        )

    def put_graph(self, items: pa.Table) -> BuiltGraph:
        path = self.folder / "index.hnsw"
        build_index(vectors_of(items), PARAMS, path)
        index = Blob(sha256=hash_file(path), size_bytes=path.stat().st_size)
        self.workspace.upload(workspace_key(index), path, sha256=index.sha256)
        return BuiltGraph(dim=16, index=index, num_nodes=None)

    def publish(self, shard: Shard) -> Shard:
        for _, blob in shard.blobs():
            if self.workspace.head(workspace_key(blob)):
                self.store.put(blob_key(blob.sha256), self.workspace.get(workspace_key(blob)))
        return shard

    def update(self, shard: Shard, rows: list[Row], compact_at: float = 0.5, popularity: int = 0) -> Shard | None:
        items, display = make_items(rows), make_display(rows, popularity)
        updated = update_shard(self.workspace, self.store, shard, items, display, self.put_graph, compact_at)
        return updated and self.publish(updated)

    def content(self, shard: Shard) -> dict[str, tuple[str, bytes]]:
        """item_id → (title, its vector as bytes) of all that the shard serves."""
        with built_blobs(self.workspace, self.store) as fetch:
            live, shown = read_live_rows(fetch, shard, "shard"), read_metadata(fetch, shard, "shard")
            graph = open_graph(fetch, 16, shard, "shard")
        labels = live["label"].to_numpy()
        np.testing.assert_array_equal(labels, graph.labels)
        titles = shown["title"].take(pa.array(labels)).to_pylist()
        vectors = [vector.tobytes() for vector in graph.vectors(labels)]
        return dict(zip(live["item_id"].to_pylist(), zip(titles, vectors, strict=True), strict=True))


def expected(rows: list[Row]) -> dict[str, tuple[str, bytes]]:
    vectors = vectors_of(make_items(rows))
    return {row[0]: (f"{row[0]} {row[1]}", vector.tobytes()) for row, vector in zip(rows, vectors, strict=True)}


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path)


contents = st.dictionaries(st.integers(0, 12), st.integers(0, 2), min_size=1).map(
    lambda items: [(f"item-{number}", version) for number, version in items.items()]
)


@given(before=contents, now=contents)
def test_a_label_stands_for_its_very_row_or_for_none_and_no_row_is_lost(before: list[Row], now: list[Row]) -> None:
    rows, new_rows = match_rows(make_items(before), make_items(now))
    for label, row in enumerate(rows.tolist()):
        assert now[row] == before[label] if row >= 0 else before[label] not in now
    assert sorted([*rows[rows >= 0].tolist(), *new_rows.tolist()]) == list(range(len(now)))


def test_nothing_changed_gives_the_very_same_shard(shards: Shards) -> None:
    shard = shards.build(BASE)
    assert shards.update(shard, BASE) == shard


def test_changed_new_and_deleted_items_leave_the_graph_as_it_is(shards: Shards) -> None:
    shard = shards.build(BASE)
    now = [("item-03", 1), *BASE[5:], ("new", 0)]
    updated = shards.update(shard, now)
    assert updated is not None
    assert (updated.index, updated.items, updated.metadata) == (shard.index, shard.items, shard.metadata)
    assert updated.tombstones is not None and updated.deltas is not None
    assert (updated.num_items, updated.tombstones.num_rows, updated.deltas[0].num_rows) == (37, 5, 2)
    assert shards.content(updated) == expected(now)


def test_every_night_adds_one_delta_until_they_become_one(shards: Shards) -> None:
    shard, rows = shards.build(BASE), list(BASE)
    counts = []
    for night in range(2 * MAX_DELTAS):
        rows = [(name, night + 1) if name == f"item-{night:02}" else (name, old) for name, old in rows]
        updated = shards.update(shard, rows)
        assert updated is not None and updated.deltas is not None
        assert shards.content(updated) == expected(rows)
        assert updated.index == shard.index
        shard = updated
        counts.append(len(updated.deltas))
    assert counts == [1, 2, 3, 4, 1, 2, 3, 4]


def test_an_item_that_comes_back_as_it_was_needs_no_new_vector(shards: Shards) -> None:
    shard = shards.build(BASE)
    without = shards.update(shard, BASE[1:])
    assert without is not None and without.tombstones is not None
    assert shards.update(without, BASE) == shard


@pytest.mark.parametrize(("num_changed", "is_carried"), [(3, True), (4, False)])
def test_beyond_compact_at_the_shard_is_rebuilt_from_scratch(
    shards: Shards, num_changed: int, is_carried: bool
) -> None:
    """A changed item counts twice, as a tombstone and as a row of a delta: 6 of 40 rows are 0.15."""
    now = [(name, 1) for name, _ in BASE[:num_changed]] + BASE[num_changed:]
    assert (shards.update(shards.build(BASE), now, compact_at=0.15) is not None) == is_carried
    assert (plan_changes(shards.build(BASE), make_items(BASE), make_items(now), 0.15) is not None) == is_carried


def test_other_metadata_alone_changes_the_metadata_alone(shards: Shards) -> None:
    shard = shards.build(BASE)
    updated = shards.update(shard, BASE, popularity=5)
    assert updated is not None
    assert replace(updated, metadata=shard.metadata) == shard != updated
    with built_blobs(shards.workspace, shards.store) as fetch:
        assert set(read_metadata(fetch, updated, "shard")["popularity"].to_pylist()) == {5}


def test_metadata_of_tombstones_belongs_to_nothing(shards: Shards) -> None:
    shard = shards.build(BASE)
    first = shards.update(shard, [*BASE[2:], ("new", 0)])
    assert first is not None
    second = shards.update(first, [*BASE[2:], ("new", 0)], popularity=5)
    assert second is not None and second.deltas is not None and first.deltas is not None
    assert second.deltas[0].items == first.deltas[0].items
    assert second.deltas[0].metadata != first.deltas[0].metadata
    with built_blobs(shards.workspace, shards.store) as fetch:
        titles = pq.read_table(fetch(second.metadata))["title"].to_pylist()
    assert titles == [None, None, *(f"{name} 0" for name, _ in BASE[2:])]
    assert shards.update(second, [*BASE[2:], ("new", 0)], popularity=5) == second


def test_a_graph_that_the_workspace_has_lost_comes_from_the_release(shards: Shards) -> None:
    shard = shards.build(BASE)
    shards.workspace.delete(workspace_key(shard.index))
    updated = shards.update(shard, BASE[1:])
    assert updated is not None
    assert shards.content(updated) == expected(BASE[1:])


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_graph_that_the_store_has_lost_is_not_carried_over_though_it_is_not_read(
    damage: str, shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shards.build(BASE)
    key = blob_key(shard.index.sha256)
    data = shards.store.get(key)
    shards.store.delete(key)
    if damage == "cut":
        shards.store.put(key, data[:-1])
    assert shards.update(shard, BASE[1:]) is None
    assert f"index: expected {shard.index.size_bytes} bytes in" in caplog.text


def test_a_release_that_is_damaged_is_not_carried_over(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shard = shards.build(BASE)
    shards.store.put(blob_key(shard.items.sha256), b"x" * shard.items.size_bytes)
    assert shards.update(shard, BASE[1:]) is None
    assert "a shard is rebuilt from scratch" in caplog.text


def test_the_order_of_the_rows_makes_no_difference_to_what_is_kept(shards: Shards) -> None:
    shard = shards.build(BASE)
    one, other = shards.update(shard, [*BASE[1:], ("new", 0)]), shards.update(shard, [("new", 0), *reversed(BASE[1:])])
    assert one == other
