"""One shard, from buckets in the workspace and a base release: its rows, their order, their vectors. No Ray."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from stages.test_carry_over import Shards, make_items, vectors_of

from indexing.errors import DamagedError, DataError
from indexing.id_keys import id_keys
from indexing.key_ranges import KEY_SPACE, KeyRange, key_range
from indexing.store import open_store
from indexing.store.blobs import blob_key
from jobs.inputs.inputs import BaseShard
from jobs.stages.shard_rows import BaseDamaged, ShardRows, overlapping, shard_items, shard_vectors
from jobs.workspace.buckets import DISPLAY, IDS, IDS_COLUMNS, VECTORS, buckets_of, write_bucket_file
from jobs.workspace.vectors import VECTOR, vector_column

ALL = KeyRange(0, KEY_SPACE - 1)
TRACKS = make_items([(f"item-{number:02}", 0) for number in range(40)])
NUM_BUCKETS = 8
DIM = 16


@pytest.fixture
def shard(tmp_path: Path) -> ShardRows:
    """All of 40 tracks, which are in the buckets without vectors."""
    shard = ShardRows(
        workspace=open_store(f"file://{tmp_path}/workspace"),
        path="items/x",
        buckets=tuple(range(NUM_BUCKETS)),
        new_buckets=(),
        store=open_store(f"file://{tmp_path}/store"),
        base=(),
        collection="tracks",
        keys=ALL,
    )
    write_rows(shard, TRACKS, "tracks")
    return shard


def write_rows(shard: ShardRows, items: pa.Table, *collections: str) -> None:
    """The same ids and fingerprints in each of the collections."""
    rows = pa.concat_tables([items.append_column("collection", [[name] * items.num_rows]) for name in collections])
    rows = rows.append_column("id_key", [id_keys(rows["item_id"].to_pylist())])
    rows = rows.sort_by([(name, "ascending") for name in ("collection", "id_key", "item_id")])
    buckets = buckets_of(rows["id_key"].to_numpy(), NUM_BUCKETS)
    for number in range(NUM_BUCKETS):
        of_bucket = rows.filter(pa.array(buckets == number))
        display = pa.table({"title": of_bucket["item_id"]})
        write_bucket_file(shard.workspace, shard.path, IDS, number, of_bucket.select(IDS_COLUMNS))
        write_bucket_file(shard.workspace, shard.path, DISPLAY, number, display)


def with_vectors(shard: ShardRows, items: pa.Table, dim: int = DIM) -> ShardRows:
    """The shard, with the vectors of the items in their buckets, and in no other."""
    rows = items.append_column("collection", [["tracks"] * items.num_rows])
    rows = rows.append_column("id_key", [id_keys(rows["item_id"].to_pylist())])
    rows = rows.append_column(VECTOR, vector_column(3 * vectors_of(items)[:, :dim].astype(np.float16)))
    buckets = buckets_of(rows["id_key"].to_numpy(), NUM_BUCKETS)
    for number in set(buckets.tolist()):
        write_bucket_file(shard.workspace, shard.path, VECTORS, number, rows.filter(pa.array(buckets == number)))
    return replace(shard, new_buckets=tuple(sorted({*shard.new_buckets, *buckets.tolist()})))


def with_base(
    shard: ShardRows, tmp_path: Path, rows: list[tuple[str, int]], *later: list[tuple[str, int]]
) -> ShardRows:
    """The shard, with one of a release that had these rows, and then later ones as deltas."""
    shards = Shards(tmp_path)
    published = shards.build(rows)
    for changed in later:
        updated = shards.update(published, changed)
        assert updated is not None
        published = updated
    return replace(shard, base=(BaseShard("tracks", published, ALL, DIM),))


def test_labels_follow_the_order_of_id_keys(shard: ShardRows) -> None:
    ids = TRACKS["item_id"].to_pylist()
    items = shard_items(shard)
    assert items["item_id"].to_pylist() == [ids[row] for row in np.argsort(id_keys(ids))]
    assert items["title"].to_pylist() == items["item_id"].to_pylist()


def test_shards_hold_every_item_of_their_collection_once(shard: ShardRows) -> None:
    write_rows(shard, TRACKS, "tracks", "shows")
    found = []
    for number in range(3):
        keys = key_range(number, 3)
        of_shard = replace(shard, keys=keys, buckets=overlapping(shard.buckets, keys, NUM_BUCKETS))
        assert len(of_shard.buckets) <= NUM_BUCKETS // 3 + 2
        found += shard_items(of_shard)["item_id"].to_pylist()
    assert sorted(found) == TRACKS["item_id"].to_pylist()


def test_tonights_vectors_come_in_label_order_at_unit_norm(shard: ShardRows) -> None:
    shard = with_vectors(shard, TRACKS)
    items = shard_items(shard)
    vectors = shard_vectors(shard, items)
    np.testing.assert_allclose(vectors, vectors_of(items.select(TRACKS.column_names)), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors.dtype == np.float32


def test_vectors_of_unchanged_rows_are_those_of_the_base_bit_by_bit(shard: ShardRows, tmp_path: Path) -> None:
    """From its graph and its deltas, and those of rows that it has deleted, too."""
    rows = [(name, 0) for name in TRACKS["item_id"].to_pylist()]
    shard = with_base(shard, tmp_path, rows[:30], [*rows[3:30], *rows[30:36]])
    shard = with_vectors(shard, TRACKS.slice(36))
    items = shard_items(shard)
    vectors = shard_vectors(shard, items)
    expected = vectors_of(items.select(TRACKS.column_names))
    is_new = np.isin(items["item_id"].to_pylist(), TRACKS["item_id"].to_pylist()[36:])
    np.testing.assert_array_equal(vectors[~is_new], expected[~is_new])
    np.testing.assert_allclose(vectors[is_new], expected[is_new], atol=1e-3)


def test_a_vector_of_an_older_text_is_not_taken(shard: ShardRows, tmp_path: Path) -> None:
    """Only a row of the same id and the same fingerprint will do."""
    rows = [(name, 0) for name in TRACKS["item_id"].to_pylist()]
    shard = with_base(shard, tmp_path, [(rows[0][0], 1), *rows[1:]])
    with pytest.raises(DamagedError, match=r"1 of 40 items have no vector in collection tracks: delete .*/items/x and"):
        shard_vectors(shard, shard_items(shard))


def test_a_base_whose_graph_cannot_be_read_is_named(shard: ShardRows, tmp_path: Path) -> None:
    shard = with_base(shard, tmp_path, [(name, 0) for name in TRACKS["item_id"].to_pylist()])
    shard.store.put(blob_key(shard.base[0].shard.index.sha256), b"altered")
    with pytest.raises(BaseDamaged) as error:
        shard_vectors(shard, shard_items(shard))
    assert error.value.shards == {"tracks/0"}


def test_vectors_of_two_dimensions_are_refused(shard: ShardRows) -> None:
    shard = with_vectors(with_vectors(shard, TRACKS), TRACKS.slice(0, 2), dim=7)
    with pytest.raises(DataError, match=r"expected vectors of (7|16) dimensions, got (16|7)"):
        shard_vectors(shard, shard_items(shard))
