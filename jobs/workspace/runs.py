"""Sorted Parquet files of the workspace, read by key range."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.errors import StoreUnavailable, first_line
from indexing.key_ranges import KeyRange
from indexing.store import Store
from indexing.store.blobs import file_blob

ROW_GROUP_ROWS = 1024


def write_run(store: Store, key: str, table: pa.Table, *, sort_by: list[str]) -> None:
    """Puts `table`, sorted, as Parquet whose row groups can be read by key range. Same rows, same bytes."""
    options = {"row_group_size": ROW_GROUP_ROWS, "use_dictionary": strings_of(table)}
    store.put(key, parquet_bytes(sort_table(table, sort_by), **options))


@contextmanager
def run_writer(store: Store, key: str, *, sort_by: list[str]) -> Iterator[Callable[[pa.Table], None]]:
    """A function that adds a table, sorted by itself, to a run; the run is in the store once the block ends well.

    What was added lies on this machine's disk until then. Nothing is stored where nothing was added. Raises
    StoreUnavailable where the disk is full.
    """
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder, ExitStack() as stack:
        path, writers = Path(folder, "run.parquet"), list[pq.ParquetWriter]()

        def add(table: pa.Table) -> None:
            try:
                if not writers:
                    writer = pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=strings_of(table))
                    writers.append(stack.enter_context(writer))
                writers[0].write_table(sort_table(table, sort_by), row_group_size=ROW_GROUP_ROWS)
            except OSError as error:
                raise StoreUnavailable(f"{folder}: expected to write a run, got: {first_line(error)}") from error

        yield add
        stack.close()
        if writers:
            store.upload(key, path, sha256=file_blob(path).sha256)


def sort_table(table: pa.Table, sort_by: list[str]) -> pa.Table:
    return table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in sort_by]))


def strings_of(table: pa.Table) -> list[str]:
    """The columns that a run encodes as dictionaries."""
    return [field.name for field in table.schema if pa.types.is_string(field.type)]


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
