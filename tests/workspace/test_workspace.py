"""Artifacts: complete once their marker exists, the same bytes for the same rows, read by range of keys."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexing.errors import DamagedError
from indexing.key_ranges import KEY_SPACE, KeyRange, id_keys, key_range
from indexing.store import open_store
from jobs.workspace.artifact import Artifact
from jobs.workspace.blobs import local_copy
from jobs.workspace.runs import read_run, write_run


@dataclass(frozen=True)
class Counts:
    num_rows: int
    name: str
    share: float


@pytest.fixture
def artifact(store_url: str) -> Artifact[Counts]:
    return Artifact(open_store(store_url), "stage/fingerprint", Counts)


@pytest.fixture
def table() -> pa.Table:
    ids = [f"item-{number}" for number in range(5000)]
    collections = ["tracks" if number % 3 else "shows" for number in range(5000)]
    return pa.table({"id_key": id_keys(ids), "item_id": ids, "collection": collections})


def test_an_artifact_is_complete_once_its_record_is_there(artifact: Artifact[Counts]) -> None:
    artifact.store.put(artifact.key("half.parquet"), b"x")
    assert artifact.read() is None
    artifact.write(Counts(num_rows=3, name="Jóga", share=0.5))
    assert artifact.read() == Counts(num_rows=3, name="Jóga", share=0.5)


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b'{"num_rows": "3", "name": "x", "share": 1}', b'{"num_rows": 3, "name": "x", "other": 1}'],
)
def test_a_record_of_another_version_is_not_done(artifact: Artifact[Counts], content: bytes) -> None:
    artifact.store.put(artifact.key("done.json"), content)
    assert artifact.read() is None


def test_a_damaged_record_is_named(artifact: Artifact[Counts]) -> None:
    artifact.store.put(artifact.key("done.json"), b'{"num_rows": ')
    with pytest.raises(DamagedError, match=r"stage/fingerprint/done\.json is not JSON: .*; delete it and run again"):
        artifact.read()


def test_a_run_is_the_same_bytes_whatever_order_its_rows_came_in(artifact: Artifact[Counts], table: pa.Table) -> None:
    order = np.random.default_rng(0).permutation(table.num_rows)
    for name, rows in (("a", table), ("b", table.take(order))):
        write_run(artifact.store, name, rows, sort_by=["id_key"])
    assert artifact.store.get("a") == artifact.store.get("b")


def test_ranges_of_a_run_hold_every_row_once(artifact: Artifact[Counts], table: pa.Table) -> None:
    write_run(artifact.store, "a", table, sort_by=["id_key"])
    parts = [read_run(artifact.store, "a", "id_key", key_range(number, 7)) for number in range(7)]
    assert pa.concat_tables(parts)["item_id"].to_pylist() == table.sort_by("id_key")["item_id"].to_pylist()
    assert all(part.num_rows for part in parts)


def test_a_run_is_read_by_collection_and_column(artifact: Artifact[Counts], table: pa.Table) -> None:
    write_run(artifact.store, "a", table, sort_by=["collection", "id_key"])
    everything = KeyRange(0, KEY_SPACE - 1)
    found = read_run(artifact.store, "a", "id_key", everything, collection="shows", columns=["item_id"])
    assert found.column_names == ["item_id"]
    assert found.num_rows == 1667


def test_the_ends_of_a_range_are_read(artifact: Artifact[Counts]) -> None:
    keys = np.array([0, 5, 2**63, KEY_SPACE - 1], np.uint64)
    write_run(artifact.store, "a", pa.table({"id_key": keys}), sort_by=["id_key"])
    for low, high, count in ((0, 0, 1), (0, 4, 1), (5, 2**63, 2), (2**63, KEY_SPACE - 1, 2), (6, 2**63 - 1, 0)):
        assert read_run(artifact.store, "a", "id_key", KeyRange(low, high)).num_rows == count


def test_a_local_copy_holds_the_object_while_it_is_used(artifact: Artifact[Counts]) -> None:
    artifact.store.put("blob", b"content")
    with local_copy(artifact.store, "blob") as path:
        assert Path(path).read_bytes() == b"content"
    assert artifact.store.get("blob") == b"content"
