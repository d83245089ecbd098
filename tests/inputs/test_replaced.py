"""Inputs that are replaced while a run reads them: it reads what it has listed, or ends with exit code 3."""

import io
import os
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inputs.test_catalogue import config_of
from support.sources import scan

from indexing.errors import DataError, ReplacedError
from indexing.store import Store, open_store
from jobs.config.schema import Config
from jobs.inputs.files import list_files, open_listed, read_footer
from jobs.inputs.interactions import read_interactions
from jobs.inputs.queries import read_queries
from jobs.inputs.text_files import read_tables

REPLACED = "expected the file that this run has listed, it was replaced or deleted since"


def parquet(first: int, **columns: Any) -> bytes:
    """Three rows of ids from `first` on; files of any two of them are of one size."""
    ids = [f"id-{number}" for number in range(first, first + 3)]
    sink = io.BytesIO()
    titles = {"item_type": ["track"] * 3, "title": ids, "query": ids, "query_group": ids}
    pq.write_table(pa.table({"item_id": ids, **titles, **columns}), sink)
    return sink.getvalue()


@pytest.fixture
def store(store_url: str) -> Store:
    return open_store(store_url)


def then_replace(function: Callable[..., Any], store: Store, key: str) -> Callable[..., Any]:
    """`function`, and the file is another one when it has returned."""

    def call(*arguments: Any) -> Any:
        found = function(*arguments)
        store.put(key, parquet(4))
        return found

    return call


CATALOGUE = {"collections": {"tracks": {"item_types": ["track"]}}}


@pytest.mark.case(30)
@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_part_of_a_catalogue_that_was_replaced_since_is_not_read(
    store: Store, store_url: str, tmp_path: Path, change: str
) -> None:
    for name in ("a", "b"):
        store.put(f"{name}.parquet", parquet(1))
    source = scan(config_of(tmp_path / "c", catalogue={**CATALOGUE, "path": store_url}))
    if change == "deleted":
        store.delete("b.parquet")
    else:
        store.put("b.parquet", parquet(4))
    first, second = pickle.loads(pickle.dumps(source.parts))  # as a worker gets them
    assert next(first.batches())["item_id"].to_pylist() == ["id-1", "id-2", "id-3"]
    with pytest.raises(DataError, match=f"{re.escape(store.describe('b.parquet'))}: {REPLACED}") as error:
        list(second.batches())
    assert "\n" not in str(error.value)


@pytest.mark.case(30)
def test_a_catalogue_that_is_replaced_between_its_listing_and_its_footer_is_not_read(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a.parquet", parquet(1))
    monkeypatch.setattr("jobs.inputs.catalogue.list_files", then_replace(list_files, store, "a.parquet"))
    with pytest.raises(DataError, match=REPLACED):
        scan(config_of(tmp_path / "c", catalogue={**CATALOGUE, "path": store_url}))


def read_titles(config: Config) -> list[str]:
    return [title for part in scan(config).parts for rows in part.batches() for title in rows["title"].to_pylist()]


@pytest.mark.case(30)
def test_a_csv_that_is_replaced_while_it_is_converted_is_not_read(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a.csv", b"item_id,title\n1,a\n")

    def read_then_replace(*arguments: Any) -> Any:
        yield from read_tables(*arguments)
        store.put("a.csv", b"item_id,title\n1,b\n")

    config = config_of(tmp_path / "c", catalogue={**CATALOGUE, "path": f"{store_url}/a.csv"})
    with monkeypatch.context() as patch:
        patch.setattr("jobs.inputs.converted.read_tables", read_then_replace)
        if store.url.startswith("s3"):  # where what was opened is what is read
            assert read_titles(config) == ["a"]
        else:
            with pytest.raises(DataError, match=REPLACED):
                scan(config)
    assert read_titles(config) == ["b"]


@pytest.mark.case(30)
def test_precomputed_vectors_that_were_replaced_since_are_not_read(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    for name, value in (("old", 1), ("new", 2)):
        np.save(tmp_path / f"{name}.npy", np.full((3, 4), value, np.float32))
    store.put("ids.parquet", parquet(1))
    store.put("v.npy", (tmp_path / "old.npy").read_bytes())
    vectors = {"path": f"{store_url}/v.npy", "ids": f"{store_url}/ids.parquet"}
    npy = scan(config_of(tmp_path / "c", catalogue=CATALOGUE, vectors=vectors)).npy
    assert npy is not None and npy.read_rows(1, 1).tolist() == [[1] * 4]
    store.put("v.npy", (tmp_path / "new.npy").read_bytes())
    with pytest.raises(DataError, match=rf"v\.npy: {REPLACED}"):
        npy.read_rows(1, 1)


@pytest.mark.case(30)
def test_the_fingerprint_of_a_log_is_that_of_the_rows_that_were_read(store: Store, store_url: str) -> None:
    store.put("log.parquet", parquet(1))
    log = read_interactions(f"{store_url}/log.parquet", None, "log", lambda num_rows: 0)
    before = log.fingerprint()
    store.put("log.parquet", parquet(4))
    assert read_interactions(f"{store_url}/log.parquet", None, "log", lambda num_rows: 0).fingerprint() != before
    if store.url.startswith("s3"):
        assert log.fingerprint() == before
    else:
        with pytest.raises(DataError, match=REPLACED):
            log.fingerprint()


@pytest.mark.case(30)
def test_queries_that_are_replaced_between_their_listing_and_their_rows_are_not_read(
    store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("q.parquet", parquet(1))
    monkeypatch.setattr("jobs.inputs.queries.read_footer", then_replace(read_footer, store, "q.parquet"))
    with pytest.raises(DataError, match=REPLACED):
        read_queries(f"{store_url}/q.parquet", None, "--queries")


@pytest.mark.case(30)
@pytest.mark.parametrize("size", [3, 4])
def test_a_file_that_is_written_to_while_it_is_read_is_noticed(tmp_path: Path, size: int) -> None:
    store, path = open_store(str(tmp_path)), tmp_path / "f"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    (info,) = store.list("f")
    with pytest.raises(DataError, match=REPLACED), open_listed(store, info) as file:
        assert file.read() == b"one"
        path.write_bytes(b"x" * size)


@pytest.mark.case(30)
def test_a_file_of_the_same_size_and_time_is_recognised_by_its_inode_but_not_on_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other machines may number the inodes of a shared folder otherwise, as FUSE does."""
    store = open_store(str(tmp_path))
    for name in ("f", "g"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (1, 1))
    (info,) = store.list("f")
    (tmp_path / "g").replace(tmp_path / "f")
    with pytest.raises(ReplacedError, match="was replaced since it was listed"):
        store.open("f", info)
    monkeypatch.setattr("indexing.store.local.socket.gethostname", lambda: "another")
    with store.open("f", info) as file:
        assert file.read() == b"g"


def test_a_large_file_is_read_in_one_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody has listed it before: parts of two versions never make one."""
    monkeypatch.setattr("indexing.store.base.READ_BUFFER_BYTES", 1000)
    store.put("a", b"1" * 5000)
    read = b""
    with store.open("a") as file:
        read += file.read(1000)
        store.put("a", b"2" * 5000)
        with pytest.raises(ReplacedError) if store.url.startswith("s3") else nullcontext():
            read += file.read()
    assert set(read) == {ord("1")}
