"""Row groups are read a bounded number of bytes at a time, and nothing is lost or added where they are cut."""

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.arrow_columns import columns

from jobs.inputs import batches
from jobs.inputs.batches import STEP_ROWS, read_batches


def file_of(table: pa.Table, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file


def test_a_small_file_is_one_batch_of_one_chunk() -> None:
    table = pa.table({"x": range(1000)})
    (batch,) = read_batches(file_of(table), [0])
    assert batch.equals(table)
    assert batch["x"].num_chunks == 1


def test_row_groups_are_read_as_they_are_named_and_cut_at_a_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 2 * STEP_ROWS)
    file = file_of(pa.table({"x": range(2000)}), row_group_size=500)
    found = list(read_batches(file, range(1, 3)))
    assert [batch.num_rows for batch in found[:-1]] == [2 * STEP_ROWS] * (len(found) - 1)
    assert [value for batch in found for value in batch["x"].to_pylist()] == list(range(500, 1500))


def test_a_small_file_that_unpacks_to_much_is_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_BYTES", 1 << 20)
    table = pa.table({"x": ["x" * 4000] * 20_000})
    file, num_rows, before = file_of(table), 0, pa.total_allocated_bytes()
    assert len(file.getvalue()) < 100_000 < table.nbytes / 500
    for batch in read_batches(file, [0]):
        assert batch.nbytes <= (1 << 20) + STEP_ROWS * 4100
        assert pa.total_allocated_bytes() - before < 10 << 20
        num_rows += batch.num_rows
    assert num_rows == table.num_rows


@given(values=columns(), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck), deadline=None)
def test_batches_of_any_type_hold_what_the_whole_file_does(values: pa.Array, sizes: list[int]) -> None:
    file = io.BytesIO()
    try:
        pq.write_table(pa.table([values], names=["column"]), file, row_group_size=sizes[0])
        whole = pq.ParquetFile(file).read()
    except (pa.ArrowException, OSError):
        return  # Parquet has no such type
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "STEP_ROWS", 1)
        patch.setattr(batches, "BATCH_ROWS", sizes[-1])
        found = list(read_batches(file, range(pq.ParquetFile(file).num_row_groups)))
    assert sum(batch.num_rows for batch in found) == whole.num_rows
    assert all(batch.schema.equals(whole.schema) for batch in found)


class ForgetfulFile(pq.ParquetFile):
    """Reads no more than the first batch."""

    def iter_batches(self, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        return islice(super().iter_batches(*arguments, **options), 1)


def test_a_file_of_which_fewer_rows_are_read_than_it_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq, "ParquetFile", ForgetfulFile)
    with pytest.raises(pa.ArrowInvalid, match="expected 1000 rows, as its footer says, read 128"):
        list(read_batches(file_of(pa.table({"x": range(1000)}))))
