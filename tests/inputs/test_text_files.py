"""CSV and JSON lines: which lines are rows, what their values are, and how a file that is neither is named."""

import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.errors import DataError
from jobs.inputs import text_files
from jobs.inputs.text_files import LINE, REASON, ROW, read_tables

OWN = {ROW, REASON, LINE}


def read(data: bytes, name: str = "a.csv") -> list[pa.Table]:
    return list(read_tables(io.BytesIO(data), name, "SOURCE"))


def good_rows(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """What the rows hold, by their number in the file."""
    rows = sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row[ROW])
    return [{name: value for name, value in row.items() if name not in OWN} for row in rows if not row[REASON]]


def bad_rows(tables: Iterable[pa.Table]) -> list[tuple[int, str, str]]:
    rows = [row for table in tables for row in table.to_pylist() if row[REASON]]
    return sorted((row[ROW], row[REASON], row[LINE]) for row in rows)


# --- CSV ---


@pytest.mark.parametrize(
    "data",
    [
        b"id,name\n007,So What\n2,\n",
        b"\xef\xbb\xbfid,name\r\n007,So What\r\n2,\r\n",
        b"id;name\n007;So What\n2;",
        b"id\tname\n007\tSo What\n2\t\n",
        b'"id","name"\n\n"007","So What"\n"2",""\n\n',
    ],
    ids=["comma", "Excel", "semicolon", "tab", "quotes and blank lines"],
)
def test_every_value_is_text_as_it_stands_and_an_empty_one_is_null(data: bytes) -> None:
    assert good_rows(read(data)) == [{"id": "007", "name": "So What"}, {"id": "2", "name": None}]
    assert good_rows(read(gzip.compress(data), "a.csv.gz")) == good_rows(read(data))


def test_a_quoted_value_may_hold_separators_quotes_and_line_ends() -> None:
    assert good_rows(read(b'id,name\n1,"a, ""b""\nc"\n')) == [{"id": "1", "name": 'a, "b"\nc'}]


@pytest.mark.case(19)
@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_a_line_with_too_few_or_too_many_fields_is_set_aside_with_its_row(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(text_files, "TABLE_BYTES", 200)
    lines = [f"{row},a" if row % 5 else f"{row}" if row % 10 else f"{row},a,b" for row in range(1, 42)]
    tables = read("\n".join(["id,name", *lines]).encode())
    assert [row["id"] for row in good_rows(tables)] == [str(row) for row in range(1, 42) if row % 5]
    numbers = pa.concat_tables([table.select([ROW]) for table in tables])[ROW].to_pylist()
    assert sorted(numbers) == list(range(1, 42))
    assert bad_rows(tables) == [
        (row, f"expected 2 fields, got {1 if row % 10 else 3}", lines[row - 1]) for row in range(5, 42, 5)
    ]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0\x1e"), max_size=6)


@given(rows=st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS), max_size=8))
def test_what_pythons_csv_writer_writes_is_read(rows: list[tuple[str, str]]) -> None:
    import csv

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("id", "name"), *rows])
    found = [(row["id"], row["name"] or "") for row in good_rows(read(text.getvalue().encode()))]
    assert found == rows


@pytest.mark.case(31)
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "expected a CSV file with a header"),
        ("a.csv", b"id,id\n1,2\n", "expected each column once, got 'id' twice"),
        (
            "a.csv",
            b'id,name\n1,a\n2,"b\n3,c\n',
            "expected each quote to be closed, got one that is open to the end of the file",
        ),
        (
            "a.csv",
            b'id,name\n"1,a\n2,b\n',
            "expected each quote to be closed, got one that is open to the end of the file",
        ),
        (
            "a.csv",
            b'id,name\n1,"' + b"a" * (2 << 20) + b'"\n',
            "expected rows of at most 1 MiB; a longer one, or a quote",
        ),
        ("a.csv", "id,name\n1,a\n".encode("utf-16"), "expected a header in UTF-8, got the byte 0xff"),
        ("a.csv.gz", b"id,name\n1,a\n", "expected a complete gzip file"),
        ("a.csv.gz", gzip.compress(b"id,name\n1,a\n", mtime=0)[:-9], "expected a complete gzip file"),
        ("a.jsonl", b'{"id": 1}\n\n{"id": {"x": 1}}\n', "line 3: id: Expected bytes, got a 'dict' object"),
    ],
)
def test_a_file_that_is_neither_is_refused_in_one_line(
    name: str, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 1 << 20)
    with pytest.raises(DataError, match=f"^SOURCE: {message}") as caught:
        read(data, name)
    assert "\n" not in str(caught.value)


# --- JSON lines ---


def test_values_keep_their_json_types_and_what_is_missing_or_empty_is_null() -> None:
    lines = [
        {"id": 1, "plays": 2, "artists": ["a", "b"], "released": "1959-08-17"},
        {"id": 2, "plays": 2.5, "more": {"a": 1, "b": {}}, "nothing": {}},
    ]
    data = "\n\n".join(map(json.dumps, lines)).encode()
    expected = [
        {"id": 1, "plays": 2.0, "artists": ["a", "b"], "released": "1959-08-17", "more": None, "nothing": None},
        {"id": 2, "plays": 2.5, "artists": None, "released": None, "more": {"a": 1, "b": None}, "nothing": None},
    ]
    assert good_rows(read(data, "a.jsonl")) == expected
    assert good_rows(read(b"\xef\xbb\xbf" + data, "a.NDJSON")) == expected
    assert good_rows(read(gzip.compress(data, mtime=0), "a.jsonl.gz")) == expected


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, "x"], ["1", None, "x"]),
        ([True, 1.5, "x"], ["true", "1.5", "x"]),
        ([1, 10**29], ["1", "1" + "0" * 29]),
        (["a", ["b", "c"], None], [["a"], ["b", "c"], None]),
        ([1, [2, None], []], [[1], [2, None], []]),
        ([1, ["b", None], []], [["1"], ["b", None], []]),
    ],
    ids=str,
)
def test_values_of_several_types_become_texts_and_lists(values: list[Any], expected: list[Any]) -> None:
    data = b"\n".join(json.dumps({"id": value}).encode() for value in values)
    assert [row["id"] for row in good_rows(read(data, "a.jsonl"))] == expected


@pytest.mark.case(19)
@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"{}",
        b"[1]",
        b"17",
        b'{"id": 1} null',
        b'{"id": 1}{"id": 2}',
        b'{"id":',
        b'{"id": "\xff"}',
        rb'{"id": "\ud800"}',
        b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"id": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=lambda line: line[:20].decode("latin-1"),
)
def test_a_line_that_is_no_object_is_set_aside_with_its_row(line: bytes) -> None:
    tables = read(b'{"id": "a"}\n\n' + line + b'\n{"id": "b"}\n', "a.jsonl")
    assert good_rows(tables) == [{"id": "a"}, {"id": "b"}]
    (bad,) = bad_rows(tables)
    assert bad[:2] == (2, "expected a JSON object in UTF-8")


@pytest.mark.case(19)
def test_a_line_that_is_too_long_is_set_aside_and_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a whole catalogue that somebody has written as one array."""
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 100)
    for size in (101, 202, 999):
        (table,) = read(b'{"id": "a"}\n' + b'{"id": 1}'.ljust(size) + b'\n{"id": "b"}\n', "a.jsonl")
        assert good_rows([table]) == [{"id": "a"}, {"id": "b"}]
        assert bad_rows([table]) == [(1, "the line is longer than 4 MiB", '{"id": 1}'.ljust(101))]
    assert good_rows(read(b'{"id": 1}'.ljust(100), "a.jsonl")) == [{"id": 1}]


def test_lines_are_read_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text_files, "TABLE_BYTES", 100)
    lines = [json.dumps({"id": number}) for number in range(50)]
    tables = read("\n".join(lines).encode(), "a.jsonl")
    assert len(tables) > 3
    assert good_rows(tables) == [{"id": number} for number in range(50)]
