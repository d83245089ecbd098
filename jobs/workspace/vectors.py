"""The column of vectors, and the key by which a row's vector is found."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.errors import DamagedError, DataError

VECTOR = "vector"


def row_keys(table: pa.Table) -> pa.Array:
    """binary (num_rows,): fingerprint and item id together, by which a row's vector is found."""
    columns = [table[name].cast(pa.binary()).combine_chunks() for name in ("fingerprint", "item_id")]
    return pc.binary_join_element_wise(*columns, b"")


class ItemVectors:
    """The vectors of some items, filled in from several places."""

    def __init__(self, num_items: int) -> None:
        self.is_there = np.zeros(num_items, bool)
        self._values: np.ndarray | None = None

    @property
    def missing(self) -> np.ndarray:
        """int64: the rows without one."""
        return np.flatnonzero(~self.is_there)

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """`values`: float32 (num_rows, dim). Raises DataError for another dim than before."""
        if not len(rows):
            return
        if self._values is None:
            self._values = np.empty((len(self.is_there), values.shape[1]), np.float32)
        if values.shape[1] != self._values.shape[1]:
            raise DataError(f"expected vectors of {self._values.shape[1]} dimensions, got {values.shape[1]}")
        self._values[rows], self.is_there[rows] = values, True

    def complete(self, where: str) -> np.ndarray:
        """float32 (num_items, dim). Raises DamagedError where an item has none."""
        if self._values is None or not self.is_there.all():
            raise DamagedError(f"{len(self.missing)} of {len(self.is_there)} items have no vector in {where}")
        return self._values


def widened(table: pa.Table) -> pa.Table:
    """The table with `vector` as float32, so that tables of several files fit each other."""
    vectors = vectors_of(table).astype(np.float32)
    return table.set_column(table.column_names.index(VECTOR), VECTOR, vector_column(vectors))


def vectors_of(table: pa.Table) -> np.ndarray:
    """(num_rows, dim) of the fixed-size column `vector`, in the type it is stored in."""
    column = table[VECTOR].combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """fixed_size_list<float, dim> of (num_rows, dim)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
