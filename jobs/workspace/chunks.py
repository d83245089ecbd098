"""Chunks: the vectors of one range of fingerprints, written once and found by name on later nights."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.catalogue.contract import FINGERPRINT_TYPE
from indexing.key_ranges import KeyRange, key_range
from indexing.store import Store
from jobs.workspace.runs import write_run
from jobs.workspace.vectors import VECTOR, row_keys, vector_column

CHUNK_ROWS = 4096
MIN_CHUNKS, MAX_CHUNKS = 8, 512
CHUNK_NAME = re.compile(r"(\d+)of(\d+)-[0-9a-f]{32}\.parquet")


def chunks_path(encoder_fingerprint: str) -> str:
    """The folder of all chunks of an encoder, whichever catalogue they came from."""
    return f"vectors/{encoder_fingerprint}"


def num_chunks(num_rows: int) -> int:
    """A power of two, so that chunks of a smaller or larger catalogue are unions or parts of these."""
    power = max(1, num_rows // CHUNK_ROWS).bit_length() - 1
    return min(MAX_CHUNKS, max(MIN_CHUNKS, 1 << power))


def list_chunks(workspace: Store, path: str) -> tuple[str, ...]:
    """The keys of all finished chunks in the folder `path`, sorted."""
    return tuple(info.key for info in workspace.list(f"{path}/"))


def read_known(
    store: Store, chunks: Sequence[str], keys: KeyRange, columns: Sequence[str] = ("item_id", "fingerprint")
) -> pa.Table:
    """What earlier runs, which may have split the space differently, stored for the range (perhaps with neighbours)."""
    tables = [read_chunk(store, key, columns) for key in chunks if overlaps(key.rpartition("/")[2], keys)]
    empty = pa.table({"item_id": pa.array([], pa.string()), "fingerprint": pa.array([], FINGERPRINT_TYPE)})
    return pa.concat_tables(tables) if tables else empty


def overlaps(name: str, keys: KeyRange) -> bool:
    """Whether the chunk file called `name` holds fingerprints of the range."""
    match = CHUNK_NAME.fullmatch(name)
    if not match:
        return False
    other = key_range(int(match[1]), int(match[2]))
    return other.low <= keys.high and keys.low <= other.high


def read_chunk(store: Store, key: str, columns: Sequence[str]) -> pa.Table:
    with store.open(key) as file:
        return pq.read_table(pa.PythonFile(file, mode="r"), columns=list(columns))


def without_known(rows: pa.Table, known: pa.Table) -> pa.Table:
    """The rows whose (fingerprint, item_id) has no vector yet."""
    return rows.filter(pc.invert(pc.is_in(row_keys(rows), value_set=row_keys(known))))


def write_chunk(workspace: Store, path: str, chunk: int, total: int, rows: pa.Table, vectors: np.ndarray) -> None:
    """The chunk's new rows, sorted by id key for `build`; named by its range and what is in it."""
    table = rows.select(["id_key", "item_id", "fingerprint"])
    name = hashlib.blake2b(b"\n".join(sorted(row_keys(table).to_pylist())), digest_size=16).hexdigest()
    write_run(
        workspace,
        f"{path}/{chunk}of{total}-{name}.parquet",
        table.append_column(VECTOR, vector_column(vectors)),
        sort_by=["id_key", "item_id", "fingerprint"],
    )
