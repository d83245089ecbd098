"""Sorted Parquet files of the workspace, read by key range."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.key_ranges import KeyRange
from indexing.store import Store

ROW_GROUP_ROWS = 1024


def write_run(store: Store, key: str, table: pa.Table, *, sort_by: list[str]) -> None:
    """Puts `table`, sorted, as Parquet whose row groups can be read by key range. Same rows, same bytes."""
    table = table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in sort_by]))
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    store.put(key, parquet_bytes(table, row_group_size=ROW_GROUP_ROWS, use_dictionary=strings))


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", **options)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def read_run(
    store: Store,
    key: str,
    key_column: str,
    keys: KeyRange,
    *,
    collection: str | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """The rows of a run whose `key_column` lies in `keys`; only the row groups that can hold some are read."""
    where = (pc.field(key_column) >= pa.scalar(keys.low, pa.uint64())) & (
        pc.field(key_column) <= pa.scalar(keys.high, pa.uint64())
    )
    if collection is not None:
        where &= pc.field("collection") == collection
    with store.open(key) as file:
        return pq.read_table(pa.PythonFile(file, mode="r"), filters=where, columns=columns, partitioning=None)


def run_key(path: str, kind: str, number: int) -> str:
    return f"{path}/{kind}-{number:05d}.parquet"


def read_parts(
    store: Store, path: str, kind: str, num_parts: int, key_column: str, keys: KeyRange, **selection: Any
) -> pa.Table:
    """The rows in `keys` of the runs `kind`-N, in the folder `path`, of all parts."""
    names = [run_key(path, kind, number) for number in range(num_parts)]
    return pa.concat_tables([read_run(store, name, key_column, keys, **selection) for name in names])
