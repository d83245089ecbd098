"""Buckets: tonight's rows of one range of id keys, in a few files that are read whole.

`ids-N` has every row, `display-N` what is displayed of the same rows, and `new-N` those whose vectors the base release
does not have, with their texts. `vectors-N` has the vectors of these. So a task reads what its own range of ids has,
whatever the size of the catalogue.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.id_keys import is_in
from indexing.key_ranges import KEY_BITS, KeyRange
from indexing.store import Store
from jobs.workspace.parquet import parquet_bytes

BUCKET_ROWS = 8192
MIN_BUCKETS, MAX_BUCKETS = 8, 2048
IDS, DISPLAY, NEW, VECTORS = "ids", "display", "new", "vectors"
"""The kinds of files."""
IDS_COLUMNS = ["collection", "id_key", "item_id", "fingerprint"]
"""Of all kinds but DISPLAY; rows are sorted by the first three."""


def num_buckets(num_rows: int) -> int:
    """A power of two: buckets have some BUCKET_ROWS rows, in large catalogues more."""
    power = max(1, num_rows // BUCKET_ROWS).bit_length() - 1
    return min(MAX_BUCKETS, max(MIN_BUCKETS, 1 << power))


def buckets_of(keys: np.ndarray, total: int) -> np.ndarray:
    """int32 (num_keys,): the bucket, of `total`, that each uint64 key falls in."""
    return (keys >> np.uint64(KEY_BITS - _bits(total))).astype(np.int32)


def buckets_in(keys: KeyRange, total: int) -> range:
    """The buckets that may hold keys of the range."""
    shift = KEY_BITS - _bits(total)
    return range(keys.low >> shift, (keys.high >> shift) + 1)


def _bits(total: int) -> int:
    return total.bit_length() - 1


def bucket_key(path: str, kind: str, number: int) -> str:
    return f"{path}/{kind}-{number:05d}.parquet"


def write_bucket_file(store: Store, path: str, kind: str, number: int, rows: pa.Table) -> None:
    store.put(bucket_key(path, kind, number), parquet_bytes(rows))


def read_bucket_file(store: Store, path: str, kind: str, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """A file of a bucket, read by one request. Raises ObjectNotFound."""
    data = store.get(bucket_key(path, kind, number))
    return pq.read_table(pa.BufferReader(data), columns=list(columns) if columns else None)


def rows_in(ids: pa.Table, collection: str, keys: KeyRange) -> pa.Array:
    """bool (num_rows,): which rows of `ids-N` are of the collection and have keys of the range."""
    return pc.and_(pc.equal(ids["collection"], collection), pa.array(is_in(ids["id_key"].to_numpy(), keys)))
