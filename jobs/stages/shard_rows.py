"""The rows of one shard from tonight's buckets, with their vectors from these and from the base release."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.errors import DamagedError
from indexing.key_ranges import KeyRange
from indexing.release.shard import read_rows, read_vectors
from indexing.store import Store
from indexing.store.cache import downloads
from jobs.inputs.inputs import BaseShard, Inputs
from jobs.run import Run
from jobs.workspace.buckets import DISPLAY, IDS, IDS_COLUMNS, VECTORS, buckets_in, read_bucket_file, rows_in
from jobs.workspace.records import Prepared
from jobs.workspace.vectors import ItemVectors, row_keys, vectors_of

logger = logging.getLogger(__name__)


class BaseDamaged(DamagedError):
    """Vectors that unchanged rows had in the base release cannot be read; they have to be made again."""

    def __init__(self, shards: set[str]) -> None:
        super().__init__(f"the current release is damaged: {', '.join(sorted(shards))}")
        self.shards = shards


@dataclass(frozen=True)
class ShardRows:
    """Where the rows of a shard are; plain data, so that Ray can ship it."""

    workspace: Store
    path: str
    """The folder of the prepared rows."""
    buckets: tuple[int, ...]
    """Those with rows that may be of the shard."""
    new_buckets: tuple[int, ...]
    """Those of them that have vectors."""
    store: Store
    base: tuple[BaseShard, ...]
    """Shards in `store` that have the vectors of the other rows."""
    collection: str
    keys: KeyRange


def rows_of_shard(run: Run, inputs: Inputs, prepared: Prepared, collection: str, keys: KeyRange) -> ShardRows:
    return ShardRows(
        workspace=run.workspace,
        path=prepared.path,
        buckets=overlapping(prepared.buckets, keys, prepared.num_buckets),
        new_buckets=overlapping(prepared.new_buckets, keys, prepared.num_buckets),
        store=run.store,
        base=tuple(base for base in inputs.base_shards if base.has(collection, keys)),
        collection=collection,
        keys=keys,
    )


def overlapping(buckets: Sequence[int], keys: KeyRange, total: int) -> tuple[int, ...]:
    """Those of the `buckets`, which are ascending, that may hold keys of the range."""
    inside = buckets_in(keys, total)
    return tuple(number for number in buckets if number in inside)


def shard_items(shard: ShardRows) -> pa.Table:
    """The shard's items in label order (id key, then id)."""
    tables = []
    for number in shard.buckets:
        ids = read_bucket_file(shard.workspace, shard.path, IDS, number)
        is_inside = rows_in(ids, shard.collection, shard.keys)
        if pc.any(is_inside).as_py():
            display = read_bucket_file(shard.workspace, shard.path, DISPLAY, number)
            columns = {name: ids[name] for name in IDS_COLUMNS} | {name: display[name] for name in display.column_names}
            tables.append(pa.table(columns).filter(is_inside))
    return pa.concat_tables(tables).combine_chunks() if tables else pa.table({"item_id": pa.array([], pa.string())})


def shard_vectors(shard: ShardRows, items: pa.Table) -> np.ndarray:
    """float32 (num_items, dim), unit norm, in the order of `items`: tonight's, and those of the base for other rows.

    Raises DamagedError where an item has no vector, BaseDamaged where the base's cannot be read.
    """
    wanted = row_keys(items)
    vectors = ItemVectors(items.num_rows)
    for number in shard.new_buckets:
        rows = read_bucket_file(shard.workspace, shard.path, VECTORS, number)
        rows = rows.filter(rows_in(rows, shard.collection, shard.keys))
        positions = pc.index_in(row_keys(rows), value_set=wanted)
        is_wanted = pc.is_valid(positions)
        values = vectors_of(rows.filter(is_wanted)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        vectors.put(positions.drop_null().to_numpy(), values)
    for base in shard.base:
        if len(vectors.missing):
            add_base_vectors(shard, base, wanted, vectors)
    return vectors.complete(f"collection {shard.collection}: delete {shard.workspace.url}/{shard.path} and run again")


def add_base_vectors(shard: ShardRows, base: BaseShard, wanted: pa.Array, vectors: ItemVectors) -> None:
    """Those that are missing so far and that the published shard has. They are stored as they are needed."""
    try:
        with downloads(shard.store) as fetch:
            found = pc.index_in(wanted, value_set=row_keys(read_rows(fetch, base.shard, str(base))))
            is_known = pc.is_valid(found).to_numpy(zero_copy_only=False)
            labels = pc.fill_null(found, 0).to_numpy().astype(np.int64)
            rows = np.flatnonzero(is_known & ~vectors.is_there)
            if len(rows):
                vectors.put(rows, read_vectors(fetch, base.dim, base.shard, labels[rows], str(base)))
    except DamagedError as error:
        logger.warning("build: the current release is damaged, so vectors are made again: %s", error)
        raise BaseDamaged({str(base)}) from error
