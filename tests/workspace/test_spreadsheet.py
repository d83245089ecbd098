"""CSV that people open in a spreadsheet."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.workspace.spreadsheet import csv_bytes


def read(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


def test_a_text_that_begins_like_a_formula_gets_an_apostrophe_and_a_number_none() -> None:
    cells = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "a=1", "", None, -1, -0.5]
    (row,) = read(csv_bytes([cells]))
    assert row == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "'\r=1", "a=1", "", "", "-1", "-0.5"]


@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3), max_size=5))
@pytest.mark.case(28)
def test_no_cell_begins_like_a_formula_and_every_text_can_be_read_back(rows: list[list[str]]) -> None:
    found = read(csv_bytes(rows))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in found for cell in row)
    assert [[cell.removeprefix("'") for cell in row] for row in found] == [
        [cell.removeprefix("'") for cell in row] for row in rows
    ]
