"""One shard, from runs in the workspace: which rows are in it, in which order, with which vectors. No Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexing.catalogue.contract import FINGERPRINT_TYPE
from indexing.dense.params import IndexParams
from indexing.errors import DamagedError, DataError
from indexing.key_ranges import KEY_SPACE, KeyRange, id_keys, key_range
from indexing.store import open_store
from jobs.stages.build import ShardTask, shard_items, shard_vectors
from jobs.workspace.artifact import Artifact
from jobs.workspace.records import Prepared
from jobs.workspace.runs import write_run
from jobs.workspace.vectors import VECTOR, vector_column

ALL = KeyRange(0, KEY_SPACE - 1)
IDS = [f"item-{number}" for number in range(40)]
VECTORS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float16)


@pytest.fixture
def prepared(tmp_path: Path) -> Artifact[Prepared]:
    return Artifact(open_store(str(tmp_path)), "items/x", Prepared)


def fingerprint_of(item_id: str) -> bytes:
    return item_id.encode().ljust(16, b"-")


def write_items(
    artifact: Artifact[Prepared], number: int, ids: list[str], collection: str = "tracks", **columns: Any
) -> None:
    table = pa.table(
        {
            "item_id": ids,
            "title": ids,
            "id_key": id_keys(ids),
            "fingerprint": pa.array(map(fingerprint_of, ids), FINGERPRINT_TYPE),
            "collection": [collection] * len(ids),
            "source_part": [number] * len(ids),
            "source_row": list(range(len(ids))),
            **columns,
        }
    )
    write_run(artifact.store, artifact.key(f"items-{number:05d}.parquet"), table, sort_by=["id_key", "item_id"])


def write_chunk(artifact: Artifact[Prepared], name: str, ids: list[str], vectors: np.ndarray) -> str:
    fingerprints = pa.array(map(fingerprint_of, ids), FINGERPRINT_TYPE)
    table = pa.table(
        {"id_key": id_keys(ids), "item_id": ids, "fingerprint": fingerprints, VECTOR: vector_column(vectors)}
    )
    write_run(artifact.store, f"vectors/{name}.parquet", table, sort_by=["id_key"])
    return f"vectors/{name}.parquet"


def make_task(artifact: Artifact[Prepared], num_parts: int = 1, **changes: Any) -> ShardTask:
    values: dict[str, Any] = {
        "workspace": artifact.store,
        "items_path": artifact.path,
        "num_parts": num_parts,
        "duplicate_ranges": (),
        "chunks": (),
        "collection": "tracks",
        "number": 0,
        "keys": ALL,
        "params": IndexParams(),
        "num_threads": 1,
        "store": artifact.store,
        "parent": None,
        "parent_dim": 0,
        "compact_at": 0.15,
    }
    return ShardTask(**(values | changes))


def test_labels_follow_the_order_of_id_keys_whatever_the_order_of_files(prepared: Artifact[Prepared]) -> None:
    write_items(prepared, 0, IDS[20:])
    write_items(prepared, 1, IDS[:20])
    items = shard_items(make_task(prepared, num_parts=2))
    assert items["item_id"].to_pylist() == [IDS[row] for row in np.argsort(id_keys(IDS))]


def test_shards_hold_every_item_of_their_collection_once(prepared: Artifact[Prepared]) -> None:
    write_items(prepared, 0, IDS[:30])
    write_items(prepared, 1, IDS[30:], collection="shows")
    shards = [shard_items(make_task(prepared, 2, keys=key_range(number, 3))) for number in range(3)]
    assert sorted(item_id for shard in shards for item_id in shard["item_id"].to_pylist()) == sorted(IDS[:30])


def test_a_row_whose_id_an_earlier_row_has_is_left_out(prepared: Artifact[Prepared]) -> None:
    write_items(prepared, 0, IDS)
    write_items(prepared, 1, IDS[5:7])
    duplicates = pa.table({"id_key": id_keys(IDS[5:7]), "source_part": [1, 1], "source_row": [0, 1]})
    write_run(prepared.store, prepared.key("duplicates-00000.parquet"), duplicates, sort_by=["id_key"])
    items = shard_items(make_task(prepared, 2, duplicate_ranges=(0,)))
    assert sorted(items["item_id"].to_pylist()) == sorted(IDS)
    assert set(items["source_part"].to_pylist()) == {0}


def test_vectors_come_in_label_order_at_unit_norm_from_all_chunks(prepared: Artifact[Prepared]) -> None:
    write_items(prepared, 0, IDS)
    chunks = (write_chunk(prepared, "a", IDS[:25], VECTORS[:25]), write_chunk(prepared, "b", IDS[25:], VECTORS[25:]))
    task = make_task(prepared, chunks=chunks)
    vectors = shard_vectors(task, shard_items(task))
    expected = VECTORS[np.argsort(id_keys(IDS))].astype(np.float32)
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert vectors.dtype == np.float32


def test_a_vector_of_an_older_text_is_not_taken(prepared: Artifact[Prepared]) -> None:
    """Only a row of the same id and the same fingerprint will do."""
    write_items(prepared, 0, IDS)
    key = write_chunk(prepared, "a", IDS, VECTORS)
    task = make_task(prepared, chunks=(key,))
    items = shard_items(task)
    changed = pa.array([b"another text ...", *items["fingerprint"].to_pylist()[1:]], FINGERPRINT_TYPE)
    items = items.set_column(items.column_names.index("fingerprint"), "fingerprint", changed)
    with pytest.raises(DamagedError, match="collection tracks: 1 of 40 items have no vector in the workspace; delete"):
        shard_vectors(task, items)


def test_chunks_that_differ_in_dimension_are_refused(prepared: Artifact[Prepared]) -> None:
    write_items(prepared, 0, IDS)
    chunks = (
        write_chunk(prepared, "a", IDS[:25], VECTORS[:25]),
        write_chunk(prepared, "b", IDS[25:], VECTORS[25:, :7]),
    )
    task = make_task(prepared, chunks=chunks)
    with pytest.raises(DataError, match=r"vectors/b\.parquet: expected vectors of 8 dimensions, got 7"):
        shard_vectors(task, shard_items(task))
