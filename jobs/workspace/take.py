"""Rows of a table by number, also where a column has more text than the 2 GiB that Arrow's own take can address."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_BYTES = 1 << 30
"""Of a chunk of texts; below the limit, so that other operations have room."""
WIDE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def take_rows(table: pa.Table, rows: np.ndarray | pa.Array) -> pa.Table:
    """The rows with these numbers, int64, in that order; a row of nulls for a null."""
    rows = pa.array(rows, pa.int64())
    return pa.table([_take(column, rows) for column in table.columns], schema=table.schema)


def _take(column: pa.ChunkedArray, rows: pa.Array) -> pa.ChunkedArray:
    if column.type not in WIDE or column.nbytes < MAX_BYTES:
        return column.take(rows)
    ends = np.cumsum(pc.fill_null(pc.binary_length(column).take(rows), 0).to_numpy())
    cuts = np.flatnonzero(np.diff(ends // MAX_BYTES)) + 1
    wide = column.cast(WIDE[column.type]).combine_chunks()
    pieces = [rows[start:end] for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    return pa.chunked_array([wide.take(piece).cast(column.type) for piece in pieces], column.type)
