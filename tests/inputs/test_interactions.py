"""Search logs: which files are taken, what their columns become, and which rows are refused."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.errors import ConfigError, DataError
from jobs.inputs.interactions import INTERACTIONS, read_interactions

GOOD = {"query": ["jazz", "blues"], "item_id": ["t1", None], "query_group": ["jazz", "blues"], "weight": [2.0, 0.0]}


def write(path: Path, **changes: Any) -> Path:
    """GOOD with columns laid over it; None leaves a column out."""
    columns = {name: column for name, column in {**GOOD, **changes}.items() if column is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def read(path: Path) -> pa.Table:
    return read_interactions(str(path), None, "interactions.path").rows


def test_a_file_and_a_folder_read_as_the_contract_with_nulls_for_what_is_missing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", extra=[1, 2])
    write(tmp_path / "b.parquet", session_id=["s", "s"], position=[1, 2])
    one, both = read(file), read(tmp_path)
    assert one.schema == both.schema == INTERACTIONS
    assert one.to_pylist() == both.to_pylist()[:2]
    assert one.to_pylist()[1] == dict.fromkeys(INTERACTIONS.names) | {
        "query": "blues",
        "query_group": "blues",
        "weight": 0,
    }
    assert both["session_id"].to_pylist() == [None, None, "s", "s"]
    assert both["position"].to_pylist() == [None, None, 1, 2]


def test_a_log_without_weights_weighs_each_row_one(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.parquet", weight=None))["weight"].to_pylist() == [1, 1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Paris"])
def test_a_timestamp_of_any_unit_and_zone_becomes_unix_seconds(tmp_path: Path, unit: str, zone: str | None) -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    column = pa.array([moment, None], pa.timestamp(unit, tz=zone))
    assert read(write(tmp_path / "a.parquet", timestamp=column))["timestamp"].to_pylist() == [moment.timestamp(), None]


def test_a_part_of_a_second_is_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", timestamp=pa.array([1500, -1500], pa.timestamp("ms")))
    assert read(file)["timestamp"].to_pylist() == [1.5, -1.5]


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("timestamp", pa.array([7, 8])),
        ("weight", pa.array([3, 0], pa.int16())),
        ("query", pa.array(["a", "b"]).dictionary_encode()),
        ("item_id", pa.array(["a", None], pa.large_string())),
        ("query_kind", pa.nulls(2)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.type),
)
def test_what_other_tools_write_for_a_string_or_a_number_is_taken(tmp_path: Path, name: str, column: pa.Array) -> None:
    assert read(write(tmp_path / "a.parquet", **{name: column}))[name].to_pylist() == column.to_pylist()


@pytest.mark.parametrize("name", ["query", "item_id", "query_group"])
def test_a_required_column_that_is_missing_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", **{name: None})
    with pytest.raises(DataError, match=rf"b\.parquet: expected columns .*; {name} not found"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("query", [1, 2]),
        ("weight", ["1", "2"]),
        ("timestamp", ["2024-01-01", "2024-01-02"]),
        ("position", [True, False]),
        ("session_id", [b"s", b"s"]),
    ],
)
def test_a_column_of_a_wrong_type_is_named_with_both_types(tmp_path: Path, name: str, column: list[object]) -> None:
    message = f"a.parquet: expected column {name} as {INTERACTIONS.field(name).type}, got {pa.array(column).type}"
    with pytest.raises(DataError, match=re.escape(message)):
        read(write(tmp_path / "a.parquet", **{name: column}))


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        (
            "query",
            ["jazz", None],
            "expected a text in column query, got null or blank in 1 rows, the first of them row 1",
        ),
        ("query_group", [" \u2003", ""], "column query_group, got null or blank in 2 rows, the first of them row 0"),
        ("weight", [1.0, -0.5], "expected a weight of 0 or more, got another in 1 rows, the first of them row 1"),
        ("weight", [float("nan"), 1.0], "got another in 1 rows, the first of them row 0"),
        ("weight", [float("inf"), 1e300], "got another in 2 rows, the first of them row 0"),
        ("weight", [1.0, None], "got another in 1 rows, the first of them row 1"),
    ],
)
def test_rows_that_break_the_contract_are_counted(tmp_path: Path, name: str, column: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=r"a\.parquet: .*" + re.escape(message)):
        read(write(tmp_path / "a.parquet", **{name: column}))


@pytest.mark.parametrize("is_large", [False, True], ids=["string", "large_string"])
def test_a_string_that_is_not_utf8_is_refused_by_file(tmp_path: Path, is_large: bool) -> None:
    bytes_type, string_type = (pa.large_binary(), pa.large_string()) if is_large else (pa.binary(), pa.string())
    column = pa.array([b"jazz", b"caf\xe9"], bytes_type).view(string_type)
    with pytest.raises(DataError, match=r"a\.parquet: expected strings in UTF-8"):
        read(write(tmp_path / "a.parquet", query=column))


def test_a_log_without_rows_or_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"interactions\.path: expected a Parquet file or a folder of them"):
        read(tmp_path)
    pq.write_table(pa.table(GOOD).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"interactions\.path: expected rows at .*, got none in 1 files"):
        read(tmp_path)


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match=r"a\.parquet: expected a Parquet file"):
        read(tmp_path)
