"""A published shard in memory: its graph, the item ids by label, and its metadata once somebody asks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.cache import BlobCache
from indexing.errors import DamagedError
from indexing.hnsw import Index, load_index
from indexing.release.manifest import Collection, Shard
from indexing.store import Store

ITEMS_SCHEMA = pa.schema({"item_id": pa.string(), "fingerprint": pa.binary(16)})


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedShard:
    collection: str
    num_items: int
    ef_search: int
    index: Index
    item_ids: pa.ChunkedArray
    """string (num_items,), by label."""
    read_metadata: Callable[[], pa.Table]

    @cached_property
    def metadata(self) -> pa.Table:
        """The columns to display, by label; read at the first use."""
        return self.read_metadata()


def load_shard(store: Store, cache: BlobCache, dim: int, collection: Collection, shard: Shard) -> LoadedShard:
    """The shard, from verified local copies of its blobs. Raises DamagedError where they don't fit the release file."""
    where = f"collection {collection.name} shard {shard.number}"

    def read_metadata() -> pa.Table:
        return read_rows(cache.fetch(store, shard.metadata), shard.num_items, f"metadata of {where}")

    cache.fetch(store, shard.metadata)  # now, so that hits can be shown whatever becomes of the store
    return LoadedShard(
        collection=collection.name,
        num_items=shard.num_items,
        ef_search=collection.ef_search,
        index=load_index(cache.fetch(store, shard.index), dim, shard.num_items),
        item_ids=read_items(cache.fetch(store, shard.items), shard.num_items, f"items of {where}")["item_id"],
        read_metadata=read_metadata,
    )


def read_items(path: Path, num_items: int, where: str) -> pa.Table:
    """The items Parquet, label order: `ITEMS_SCHEMA`, no nulls. Raises DamagedError for anything else."""
    table = read_rows(path, num_items, where)
    if not table.schema.equals(ITEMS_SCHEMA):
        raise DamagedError(f"{where}: expected columns {_describe(ITEMS_SCHEMA)}, got {_describe(table.schema)}")
    if any(column.null_count for column in table.columns):
        raise DamagedError(f"{where}: expected an item_id and a fingerprint in every row, got nulls")
    return table


def read_rows(path: Path, num_items: int, where: str) -> pa.Table:
    """A Parquet file of one row an item. Raises DamagedError for another number of rows or another format."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{where}: expected a Parquet file, got {str(error).splitlines()[0][:200]}") from error
    if table.num_rows != num_items:
        raise DamagedError(f"{where}: expected {num_items} rows, got {table.num_rows}")
    return table


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
