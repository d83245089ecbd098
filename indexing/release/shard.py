"""A shard of a release, from local files: its graph with what has changed since it was built, its ids, its metadata.

Labels count the rows of the shard, then those of each delta; a tombstone takes a label out of every search.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexing.dense.hnsw import load_graph
from indexing.dense.shard_graph import Segment, ShardGraph, node_numbers
from indexing.errors import DamagedError, first_line
from indexing.release.manifest import Collection, Delta, Shard
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
    graph: ShardGraph
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
        graph=make_graph(fetch, dim, shard, rows, where),
        item_ids=rows["item_id"].combine_chunks(),
        read_metadata=lambda: read_metadata(lambda blob: mapped[blob.sha256], shard, where),
    )


def map_file(path: Path) -> pa.Buffer:
    """The file's bytes, mapped: they can be read after it is deleted, and take no file descriptor."""
    if not path.stat().st_size:
        return pa.py_buffer(b"")  # which cannot be mapped
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def open_graph(fetch: Fetch, dim: int, shard: Shard, where: str) -> ShardGraph:
    """The shard's graphs as they are served. Raises DamagedError."""
    return make_graph(fetch, dim, shard, read_rows(fetch, shard, where), where)


def make_graph(fetch: Fetch, dim: int, shard: Shard, rows: pa.Table, where: str) -> ShardGraph:
    """The shard's graphs as they are served; `rows` as `read_rows` gives them."""
    is_live = np.ones(shard.num_rows, bool)
    is_live[read_tombstones(fetch, shard, where)] = False
    if any(delta.index is None for delta in shard.deltas or ()):
        return ShardGraph([open_inserted(fetch, dim, shard, is_live, rows, where)], [shard.num_rows])
    segments, sizes, first = [], [], 0
    for part, num_rows in parts_of(shard):
        of_part = rows.slice(first, num_rows)
        nodes = part_nodes(part, of_part, where)
        assert part.index is not None
        graph = load_graph(fetch(part.index), dim, part.num_nodes or num_rows)
        ids = of_part["item_id"].combine_chunks()
        segments.append(Segment(graph, is_live[first : first + num_rows], nodes, ids))
        sizes.append(num_rows)
        first += num_rows
    return ShardGraph(segments, sizes)


def parts_of(shard: Shard) -> list[tuple[Shard | Delta, int]]:
    """What has a graph of its own, and its rows: the shard itself, then its deltas."""
    return [(shard, shard.num_base_rows), *((delta, delta.num_rows) for delta in shard.deltas or ())]


def part_nodes(part: Shard | Delta, rows: pa.Table, where: str) -> np.ndarray | None:
    """The node of each of its rows; None where row i has node i."""
    if part.num_nodes is None:
        return None
    nodes = node_numbers(rows["fingerprint"].combine_chunks())
    if nodes.max() + 1 != part.num_nodes:
        raise DamagedError(f"items of {where}: expected {part.num_nodes} fingerprints, got {nodes.max() + 1}")
    return nodes


def open_inserted(fetch: Fetch, dim: int, shard: Shard, is_live: np.ndarray, rows: pa.Table, where: str) -> Segment:
    """Of format version 1, whose deltas have no graphs: their rows are inserted into that of the shard."""
    graph = load_graph(fetch(shard.index), dim, shard.num_base_rows)
    vectors = [
        read_delta_vectors(fetch(delta.items), dim, delta.num_rows, f"delta {number} of {where}")
        for number, delta in enumerate(shard.deltas or ())
    ]
    labels = np.arange(shard.num_base_rows, shard.num_rows)
    graph.insert(labels, np.concatenate(vectors))
    return Segment(graph, is_live, None, rows["item_id"].combine_chunks())


def read_vectors(fetch: Fetch, dim: int, shard: Shard, labels: np.ndarray, where: str) -> np.ndarray:
    """float32 (num_labels, dim) of any labels, those of tombstones included. Raises DamagedError."""
    rows = read_rows(fetch, shard, where)
    vectors = np.empty((len(labels), dim), np.float32)
    first = 0
    for number, (part, num_rows) in enumerate(parts_of(shard)):
        of_part = np.flatnonzero((labels >= first) & (labels < first + num_rows))
        if len(of_part):
            wanted, nodes = labels[of_part] - first, part_nodes(part, rows.slice(first, num_rows), where)
            if part.index is None:
                found = read_delta_vectors(fetch(part.items), dim, num_rows, f"delta {number - 1} of {where}")
                vectors[of_part] = found[wanted]
            else:
                graph = load_graph(fetch(part.index), dim, part.num_nodes or num_rows)
                wanted = wanted if nodes is None else nodes[wanted]
                for block in np.array_split(np.arange(len(wanted)), -(-len(wanted) // BLOCK_ROWS)):
                    vectors[of_part[block]] = graph.vectors(wanted[block])
        first += num_rows
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
