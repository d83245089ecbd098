"""The column of vectors, and the key by which a row's vector is found."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

VECTOR = "vector"


def row_keys(table: pa.Table) -> pa.Array:
    """binary (num_rows,): fingerprint and item id together, by which a row's vector is found."""
    columns = [table[name].cast(pa.binary()).combine_chunks() for name in ("fingerprint", "item_id")]
    return pc.binary_join_element_wise(*columns, b"")


def vectors_of(table: pa.Table) -> np.ndarray:
    """(num_rows, dim) of the fixed-size column `vector`, in the type it is stored in."""
    column = table[VECTOR].combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    """fixed_size_list<float, dim> of (num_rows, dim)."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
