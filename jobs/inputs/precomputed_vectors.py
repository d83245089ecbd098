"""Precomputed vectors in place of texts and an encoder: read part by part, checked, and stored like those of `encode`.

Parquet with columns `item_id` and `vector` (any others of the catalogue contract, or beyond it, are metadata), or .npy
with a Parquet file of ids in the same order. Missing item types and titles are filled in.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.columns import is_list, is_number, plain, plain_type
from indexing.catalogue.contract import FINGERPRINT_TYPE
from indexing.errors import ConfigError, DataError
from indexing.store import ObjectInfo, Store
from jobs.config.schema import Config
from jobs.inputs.files import content_digest, open_listed
from jobs.workspace.vectors import VECTOR


@dataclass(frozen=True)
class Npy:
    """A 2-d float array in C order; plain data, so that Ray can ship it."""

    store: Store
    info: ObjectInfo
    """The file as it was listed."""
    dim: int
    dtype: str
    offset: int
    """Of the first row in the file, in bytes."""
    digest: str
    """Changes with any byte of the file."""

    def read_rows(self, start: int, count: int) -> np.ndarray:
        """Rows start … start + count, (count, dim), read as one range. Raises DataError where the file was replaced."""
        dtype = np.dtype(self.dtype)
        with open_listed(self.store, self.info) as file:
            file.seek(self.offset + start * self.dim * dtype.itemsize)
            return np.frombuffer(file.read(count * self.dim * dtype.itemsize), dtype).reshape(count, self.dim)


def open_npy(store: Store, info: ObjectInfo, num_ids: int) -> Npy:
    """Raises DataError unless the .npy is a 2-d float array with a row for each id."""
    source = store.describe(info.key)
    with open_listed(store, info) as file:
        (num_rows, dim), dtype, offset = read_npy_header(file, source)
        size_bytes = file.seek(0, 2)
        if num_rows != num_ids:
            raise DataError(f"{source}: expected {num_ids} rows, as vectors.ids has, got {num_rows}")
        if dtype.itemsize > 8:
            raise DataError(f"{source}: expected float16, float32 or float64, got {dtype}")
        expected_bytes = offset + num_rows * dim * dtype.itemsize
        if size_bytes != expected_bytes:
            raise DataError(f"{source}: expected {expected_bytes} bytes, as its header says, got {size_bytes}")
        return Npy(store, info, dim, dtype.str, offset, content_digest(store, info, file))


def read_npy_header(file: Any, source: str) -> tuple[tuple[int, int], np.dtype, int]:
    """(shape, dtype, offset of the data in bytes) of a 2-d float array in C order, little-endian."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except ValueError as error:
        raise DataError(f"{source}: expected a .npy file, got something else: {error}") from error
    if len(shape) != 2 or not shape[1] or dtype.kind != "f" or is_fortran or not dtype.isnative:
        raise DataError(f"{source}: expected a float array (num_rows, dim) in C order, got {dtype} {shape}")
    return shape, dtype, file.tell()


def require_vectors(kind: pa.DataType, source: str) -> None:
    """Raises DataError unless a column of type `kind` has lists of numbers."""
    plain_kind = plain_type(kind)
    if not (is_list(plain_kind) and is_number(plain_kind.value_type)):
        raise DataError(f"{source}: expected column {VECTOR} as lists of numbers, got {kind}")


def most_common_length(columns: Iterable[pa.Array]) -> int | None:
    """Of the lists in the first column that has some which are not empty; of two as common the larger."""
    for column in columns:
        lengths = pc.list_value_length(plain(column)).drop_null()
        counts = pc.value_counts(lengths.filter(pc.greater(lengths, 0))).to_pylist()
        if counts:
            return int(max((row["counts"], row["values"]) for row in counts)[1])
    return None


def column_vectors(column: pa.ChunkedArray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """((num_rows, dim), zeros where a row has no list of `dim` numbers; bool (num_rows,): where that is)."""
    array = plain(column.combine_chunks())
    fits = pc.fill_null(pc.equal(pc.list_value_length(array), dim), False).to_numpy(zero_copy_only=False)
    fits &= pc.is_valid(array).to_numpy(zero_copy_only=False)
    numbers = pc.list_flatten(array.filter(pa.array(fits)))
    if not pa.types.is_floating(numbers.type):
        numbers = pc.cast(numbers, pa.float64(), safe=False)
    values = numbers.to_numpy(zero_copy_only=False)
    vectors = np.zeros((len(array), dim), values.dtype)
    vectors[fits] = values.reshape(-1, dim)
    return vectors, ~fits


def normalise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(unit vectors as float32, or float16 if they were; bool (num_rows,): which cannot be normalised)."""
    wide = vectors.astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        bad = ~(np.isfinite(norms) & (norms > 0))
        unit = np.where(bad, 0, wide / norms)
    return unit.astype(np.float16 if vectors.dtype == np.float16 else np.float32), bad[:, 0]


def vector_fingerprints(vectors: np.ndarray) -> pa.Array:
    """fixed_size_binary(16) (num_rows,): BLAKE2b-128 of each row's bytes."""
    return pa.array([hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in vectors], FINGERPRINT_TYPE)


def fill_titles(table: pa.Table) -> pa.Table:
    """Titles default to the id."""
    titles = pc.coalesce(table["title"], table["item_id"])
    return table.set_column(table.column_names.index("title"), "title", titles)


def fill_types(table: pa.Table, item_types: list[str]) -> pa.Table:
    """Item types default to the configured one where there is only one."""
    if len(item_types) > 1:
        return table
    kinds = pc.fill_null(table["item_type"], item_types[0])
    return table.set_column(table.column_names.index("item_type"), "item_type", kinds)


def require_item_type(config: Config, schema: pa.Schema, source: str) -> None:
    """Raises ConfigError when several item types are configured and the rows have none."""
    if "item_type" not in schema.names and len(config.item_types()) > 1:
        raise ConfigError(
            f"{source} has no column item_type, so catalogue.collections must have one item type, "
            f"got {', '.join(sorted(config.item_types()))}"
        )
