"""A shard of a release, from local files: its graph with what has changed since it was built, its ids, its metadata.

Labels count the rows of the graph, then those of each delta; a tombstone takes a label out of every search.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexing.dense.hnsw import Graph, load_graph
from indexing.errors import DamagedError, first_line
from indexing.release.manifest import Collection, Shard
from indexing.store.blobs import Blob, Fetch
from indexing.vectors import NORM_TOLERANCE

BLOCK_ROWS = 8192
ITEMS_SCHEMA = pa.schema({"item_id": pa.string(), "fingerprint": pa.binary(16)})
TOMBSTONES_SCHEMA = pa.schema({"label": pa.int64()})


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedShard:
    collection: str
    num_items: int
    num_rows: int
    """Labels, those of tombstones included."""
    ef_search: int
    graph: Graph
    item_ids: pa.StringArray
    """string (num_rows,), by label."""
    read_metadata: Callable[[], pa.Table]

    @cached_property
    def metadata(self) -> pa.Table:
        """The columns to display, by label; read at the first use."""
        return self.read_metadata()


def load_shard(fetch: Fetch, dim: int, collection: Collection, shard: Shard) -> LoadedShard:
    """The shard in memory. Raises DamagedError where its files don't fit the release file."""
    where = f"collection {collection.name} shard {shard.number}"
    metadata = [shard.metadata, *(delta.metadata for delta in shard.deltas or ())]
    # Mapped now, so that hits can be shown even after the store and the cache have deleted the files.
    mapped = {blob.sha256: map_file(fetch(blob)) for blob in metadata}
    rows = read_rows(fetch, shard, where)
    return LoadedShard(
        collection=collection.name,
        num_items=shard.num_items,
        num_rows=shard.num_rows,
        ef_search=collection.ef_search,
        graph=open_graph(fetch, dim, shard, where),
        item_ids=rows["item_id"].combine_chunks(),
        read_metadata=lambda: read_metadata(lambda blob: mapped[blob.sha256], shard, where),
    )


def map_file(path: Path) -> pa.Buffer:
    """The file's bytes, mapped: they can be read after it is deleted, and take no file descriptor."""
    if not path.stat().st_size:
        return pa.py_buffer(b"")  # which cannot be mapped
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def open_graph(fetch: Fetch, dim: int, shard: Shard, where: str) -> Graph:
    """The shard's graph as it is served: the deltas' rows inserted, then the tombstones deleted."""
    graph = load_graph(fetch(shard.index), dim, shard.num_base_rows)
    deleted = read_tombstones(fetch, shard, where)
    parts = [
        read_delta_vectors(fetch(delta.items), dim, delta.num_rows, f"delta {number} of {where}")
        for number, delta in enumerate(shard.deltas or ())
    ]
    if parts:
        labels = np.arange(shard.num_base_rows, shard.num_rows)
        is_live = ~np.isin(labels, deleted)
        graph.insert(labels[is_live], np.concatenate(parts)[is_live])
    graph.delete(deleted[deleted < shard.num_base_rows])
    return graph


def live_vectors(fetch: Fetch, dim: int, shard: Shard, where: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(labels, float32 (some rows, dim)) over all items, by label; deltas need not be inserted for this."""
    graph, deleted = load_graph(fetch(shard.index), dim, shard.num_base_rows), read_tombstones(fetch, shard, where)
    graph.delete(deleted[deleted < shard.num_base_rows])
    yield from graph.blocks(BLOCK_ROWS)
    first = shard.num_base_rows
    for number, delta in enumerate(shard.deltas or ()):
        vectors = read_delta_vectors(fetch(delta.items), dim, delta.num_rows, f"delta {number} of {where}")
        labels = np.arange(first, first + delta.num_rows)
        is_live = ~np.isin(labels, deleted)
        yield labels[is_live], vectors[is_live]
        first += delta.num_rows


def read_vectors(fetch: Fetch, dim: int, shard: Shard, labels: np.ndarray, where: str) -> np.ndarray:
    """float32 (num_labels, dim) of any labels, those of tombstones included. Raises DamagedError."""
    vectors = np.empty((len(labels), dim), np.float32)
    is_inside = labels < shard.num_base_rows
    if is_inside.any():
        graph = load_graph(fetch(shard.index), dim, shard.num_base_rows)
        for rows in np.array_split(np.flatnonzero(is_inside), -(-int(is_inside.sum()) // BLOCK_ROWS)):
            vectors[rows] = graph.vectors(labels[rows])
    first = shard.num_base_rows
    for number, delta in enumerate(shard.deltas or ()):
        is_inside = (labels >= first) & (labels < first + delta.num_rows)
        if is_inside.any():
            found = read_delta_vectors(fetch(delta.items), dim, delta.num_rows, f"delta {number} of {where}")
            vectors[is_inside] = found[labels[is_inside] - first]
        first += delta.num_rows
    return vectors


def read_rows(fetch: Fetch, shard: Shard, where: str) -> pa.Table:
    """`ITEMS_SCHEMA`, by label: the rows of the graph and of each delta, tombstones included."""
    tables = [read_items(fetch(shard.items), shard.num_base_rows, f"items of {where}")]
    for number, delta in enumerate(shard.deltas or ()):
        table = read_table(fetch(delta.items), delta.num_rows, f"delta {number} of {where}", ITEMS_SCHEMA.names)
        tables.append(check_items(table, f"delta {number} of {where}"))
    return pa.concat_tables(tables)


def read_live_rows(fetch: Fetch, shard: Shard, where: str) -> pa.Table:
    """`ITEMS_SCHEMA` and label int64: the rows that are not tombstones."""
    rows = read_rows(fetch, shard, where)
    labels = np.setdiff1d(np.arange(shard.num_rows), read_tombstones(fetch, shard, where), assume_unique=True)
    return rows.take(labels).append_column("label", pa.array(labels))


def read_metadata(fetch: Callable[[Blob], Path | pa.Buffer], shard: Shard, where: str) -> pa.Table:
    """The columns to display, by label."""
    tables = [read_table(fetch(shard.metadata), shard.num_base_rows, f"metadata of {where}")]
    for number, delta in enumerate(shard.deltas or ()):
        tables.append(read_table(fetch(delta.metadata), delta.num_rows, f"metadata of delta {number} of {where}"))
        if not tables[-1].schema.equals(tables[0].schema):
            raise DamagedError(
                f"metadata of delta {number} of {where}: expected columns {_describe(tables[0].schema)}, "
                f"got {_describe(tables[-1].schema)}"
            )
    return pa.concat_tables(tables)


def read_tombstones(fetch: Fetch, shard: Shard, where: str) -> np.ndarray:
    """int64 (num_tombstones,), ascending. Raises DamagedError for labels outside the shard, or repeated ones."""
    if shard.tombstones is None:
        return np.empty(0, np.int64)
    where = f"tombstones of {where}"
    table = read_table(fetch(shard.tombstones.labels), shard.tombstones.num_rows, where)
    if not table.schema.equals(TOMBSTONES_SCHEMA) or table["label"].null_count:
        raise DamagedError(
            f"{where}: expected {_describe(TOMBSTONES_SCHEMA)} without nulls, got {_describe(table.schema)}"
        )
    labels: np.ndarray = table["label"].to_numpy()
    if labels[0] < 0 or labels[-1] >= shard.num_rows or (np.diff(labels) <= 0).any():
        raise DamagedError(f"{where}: expected ascending labels below {shard.num_rows}, got others")
    return labels


def read_delta_vectors(path: Path, dim: int, num_rows: int, where: str) -> np.ndarray:
    """float32 (num_rows, dim), unit norm. Raises DamagedError for anything else."""
    column = read_table(path, num_rows, where, ["vector"])["vector"].combine_chunks()
    expected = pa.list_(pa.float32(), dim)
    if column.type != expected or column.null_count or column.flatten().null_count:
        raise DamagedError(f"{where}: expected vectors of type {expected} without nulls, got {column.type}")
    vectors: np.ndarray = column.flatten().to_numpy().reshape(num_rows, dim)
    with np.errstate(all="ignore"):
        if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < NORM_TOLERANCE).all():
            raise DamagedError(f"{where}: expected vectors of unit norm, got others")
    return vectors


def read_items(path: Path, num_items: int, where: str) -> pa.Table:
    """The items Parquet, label order: `ITEMS_SCHEMA`, no nulls. Raises DamagedError for anything else."""
    return check_items(read_table(path, num_items, where), where)


def check_items(table: pa.Table, where: str) -> pa.Table:
    if not table.schema.equals(ITEMS_SCHEMA):
        raise DamagedError(f"{where}: expected columns {_describe(ITEMS_SCHEMA)}, got {_describe(table.schema)}")
    if any(column.null_count for column in table.columns):
        raise DamagedError(f"{where}: expected an item_id and a fingerprint in every row, got nulls")
    return table


def read_table(source: Path | pa.Buffer, num_rows: int, where: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file with one row per item. Raises DamagedError for other columns or rows, or another format."""
    try:
        opened = pa.BufferReader(source) if isinstance(source, pa.Buffer) else source
        table = pq.read_table(opened, columns=columns, partitioning=None)
    except FileNotFoundError:
        raise  # not damaged: a cache was trimmed
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{where}: expected a Parquet file, got {first_line(error)[:200]}") from error
    if columns and table.column_names != columns:
        raise DamagedError(f"{where}: expected columns {', '.join(columns)}, got {', '.join(table.column_names)}")
    if table.num_rows != num_rows:
        raise DamagedError(f"{where}: expected {num_rows} rows, got {table.num_rows}")
    return table


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
