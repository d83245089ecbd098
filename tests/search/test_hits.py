"""Any row that a release may hold can be returned as a hit, printed, and written as JSON."""

import datetime
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.arrow_columns import NUM_ROWS, columns
from support.tiny_release import make_release

from indexing import OpenRelease
from indexing.release.shard import LoadedShard
from indexing.search.results import Results
from indexing.search.values import plain_value, row_values
from jobs.cli.search import display_text, hit_records, print_hits


class NoGraph:
    """A graph is not needed for making hits."""


def results_of(metadata: pa.Table) -> Results:
    ids = pa.array([f"i{row}" for row in range(metadata.num_rows)], pa.string())
    shard = LoadedShard(
        collection="tracks",
        num_items=metadata.num_rows,
        num_rows=metadata.num_rows,
        ef_search=10,
        graph=NoGraph(),  # type: ignore[arg-type]
        item_ids=ids,
        read_metadata=lambda: metadata,
    )
    opened = OpenRelease(make_release(1), [shard], None)
    rows = np.arange(metadata.num_rows)[None, :]
    return Results(opened, rows, np.ones(rows.shape, np.float32))


def use(metadata: pa.Table) -> list[dict[str, Any]]:
    """Makes hits, prints them, writes JSON; returns the metadata as JSON reads it."""
    (hits,) = results_of(metadata)
    assert [hit.item_id for hit in hits] == [f"i{row}" for row in range(metadata.num_rows)]
    print_hits(hits)
    records: Any = hit_records(hits)
    text = json.dumps(records, allow_nan=False)
    text.encode()
    return [record["metadata"] for record in json.loads(text)]


@pytest.mark.case(28)
@given(values=columns(), as_title=st.booleans())
@settings(derandomize=True)
def test_a_hit_can_be_made_of_any_row(values: pa.Array, as_title: bool) -> None:
    name = "title" if as_title else "creators"
    made = use(pa.table([values], names=[name]))
    assert [list(metadata) for metadata in made] == [[name]] * NUM_ROWS


@pytest.mark.case(28)
@given(values=columns())
@settings(derandomize=True)
def test_a_hit_can_be_made_of_any_row_that_parquet_has_kept(values: pa.Array) -> None:
    table, sink = pa.table([values], names=["column"]), pa.BufferOutputStream()
    try:
        pq.write_table(table, sink)
        table = pq.read_table(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowException, OSError):
        return  # Parquet has no such type, so no release has it
    # Arrow 26 loses rows where it writes a dictionary of an extension type of fixed width, which no input has.
    assert len(use(table)) == table.num_rows


def test_values_that_python_has_are_as_they_were() -> None:
    values = {"year": 1997, "day": datetime.date(2020, 2, 29), "tags": ["a", None], "more": {"x": 1.5}, "raw": b"\xff"}
    assert row_values(pa.Table.from_pylist([values]), 0) == values


def test_the_date_infinity_is_its_text() -> None:
    """As PostgreSQL and Spark write it."""
    column = pa.array([2**31 - 1, 18_000, None], pa.int32()).view(pa.date32())
    shown = [plain_value(value) for value in pa.chunked_array([column])]
    assert "2147483647" in shown[0]
    assert shown[1:] == [datetime.date(2019, 4, 14), None]


def test_one_value_that_python_lacks_changes_none_next_to_it() -> None:
    days = pa.array([2**31 - 1, 18_000], pa.int32()).view(pa.date32())
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), days)
    shown = plain_value(lists[0])
    assert "2147483647" in shown[0]
    assert shown[1] == datetime.date(2019, 4, 14)


def test_a_null_among_creators_is_left_out() -> None:
    assert display_text(["Ada", None, "Bo"]) == "Ada, Bo"
    assert display_text(None) == display_text([None]) == ""
    use(pa.table({"title": [None, "x"], "creators": pa.array([[None], None], pa.list_(pa.string()))}))


def test_json_has_null_for_what_is_not_a_number() -> None:
    made = use(pa.table({"loudness": [float("nan"), float("inf"), 0.5]}))
    assert [metadata["loudness"] for metadata in made] == [None, None, 0.5]
