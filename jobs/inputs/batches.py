"""Rows of a Parquet file, a bounded number of bytes at a time: memory follows the batch and not the row group.

How many bytes rows have is known only once they are read: a file of 10 kB can hold 300 MB of one repeated text.
"""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_BYTES = 32 << 20
BATCH_ROWS = 65_536
STEP_ROWS = 128
"""Rows that are read at once, so a batch exceeds BATCH_BYTES by at most as many rows."""
BUFFER_BYTES = 4 << 20
"""Of a column's bytes in the file, which would else be read whole for each row group."""


def read_batches(
    file: BinaryIO, row_groups: Sequence[int] | None = None, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of the row groups (by default all), in order: at most BATCH_ROWS rows, and some BATCH_BYTES, at once.

    Raises ArrowInvalid for invalid Parquet, and where not all rows of the file were read.
    """
    steps: list[pa.RecordBatch] = []
    size_bytes = num_rows = num_read = 0
    parquet = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    for step in parquet.iter_batches(STEP_ROWS, row_groups, columns, use_threads=False):
        steps.append(step)
        size_bytes, num_rows, num_read = size_bytes + step.nbytes, num_rows + step.num_rows, num_read + step.num_rows
        if size_bytes >= BATCH_BYTES or num_rows >= BATCH_ROWS:
            yield _join(steps)
            steps, size_bytes, num_rows = [], 0, 0
    if steps:
        yield _join(steps)
    groups = range(parquet.num_row_groups) if row_groups is None else row_groups
    num_expected = sum(parquet.metadata.row_group(group).num_rows for group in groups)
    if num_read != num_expected:
        raise pa.ArrowInvalid(f"expected {num_expected} rows, as its footer says, read {num_read}")


def _join(steps: list[pa.RecordBatch]) -> pa.Table:
    """One chunk for each column, but for a type of which Arrow cannot join chunks."""
    table = pa.Table.from_batches(steps)
    columns = []
    for column in table.columns:
        try:
            columns.append(pa.chunked_array([column.combine_chunks()], column.type))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            columns.append(column)
    return pa.table(columns, schema=table.schema)
