"""Search logs: which files are read, what their columns become, and which rows are refused."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.errors import ConfigError, DataError
from jobs.inputs.interactions import INTERACTIONS, check_rows, read_interactions

GOOD = {"query": ["jazz", "blues"], "item_id": ["t1", None], "query_group": ["jazz", "blues"], "weight": [2.0, 0.0]}


def write(path: Path, **changes: Any) -> Path:
    """GOOD with columns replaced; None leaves a column out."""
    columns = {name: column for name, column in {**GOOD, **changes}.items() if column is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def read(path: Path, num_bad: int = 0) -> pa.Table:
    """At most `num_bad` rows may be bad."""
    return read_interactions(str(path), None, "interactions.path", lambda num_rows: num_bad).rows


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
        ("weight", pa.array([3, 0], pa.int16())),
        ("query", pa.array(["a", "b"]).dictionary_encode()),
        ("item_id", pa.array(["a", None], pa.large_string())),
        ("query_kind", pa.nulls(2)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.type),
)
def test_what_other_tools_write_for_a_string_or_a_number_is_read(tmp_path: Path, name: str, column: pa.Array) -> None:
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
        ("query", [1.0, 2.0]),
        ("weight", [True, False]),
        ("timestamp", [True, False]),
        ("position", [True, False]),
        ("session_id", [1.0, 2.0]),
    ],
)
def test_a_column_of_a_wrong_type_is_named_with_both_types(tmp_path: Path, name: str, column: list[object]) -> None:
    message = f"a.parquet: expected column {name} as {INTERACTIONS.field(name).type}, got {pa.array(column).type}"
    with pytest.raises(DataError, match=re.escape(message)):
        read(write(tmp_path / "a.parquet", **{name: column}))


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("name", "column", "reason"),
    [
        ("query", ["jazz", None], "query is null or blank"),
        ("query_group", ["jazz", " \u2003"], "query_group is null or blank"),
        ("weight", [1.0, -0.5], "weight is missing, negative or not finite"),
        ("weight", [1.0, float("nan")], "weight is missing, negative or not finite"),
        ("weight", [1.0, 1e300], "weight is missing, negative or not finite"),
        ("weight", [1.0, None], "weight is missing, negative or not finite"),
        ("weight", ["1", "many"], "weight is not a number"),
        ("position", [1.0, 1e12], "position does not fit int32"),
        ("query", ["jazz", "x" * 10_001], "query is longer than 10,000 characters"),
        ("session_id", ["s", "x" * 10_001], "session_id is longer than 10,000 characters"),
        ("query", pa.array([b"jazz", b"caf\xe9"]).view(pa.string()), "a string is not valid UTF-8"),
        ("query", pa.array([b"jazz", b"caf\xe9"], pa.large_binary()), "a string is not valid UTF-8"),
    ],
)
def test_a_bad_row_is_set_aside_and_counted_and_too_many_are_refused(
    tmp_path: Path, name: str, column: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "a.parquet", **{name: column})
    assert read(file, num_bad=1)["query_group"].to_pylist() == ["jazz"]
    said = f"1: {reason}, first in row 2 of file://{file}"
    assert caplog.messages == [f"interactions.path: 1 of 2 rows are set aside; {said}"]
    message = "interactions.path: expected at most 0 bad rows (catalogue.max_quarantined), got 1 of 2; " + said
    with pytest.raises(DataError, match=re.escape(message)):
        read(file)


def test_a_log_is_read_in_batches_and_its_bad_rows_are_never_held_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """10 kB of Parquet unpack to 250 MB of one text, which nobody can have searched for."""
    monkeypatch.setattr("jobs.inputs.batches.BATCH_BYTES", 1 << 20)
    good, bad = 300, 5_000
    queries = pa.array(["jazz"] * good + ["x" * 50_000] * bad)
    times = pa.array([1_700_000_000_000] * (good + bad - 1) + [5])
    columns = {"item_id": ["t"] * len(queries), "query_group": ["g"] * len(queries), "weight": None}
    file = write(tmp_path / "a.parquet", query=queries, timestamp=times, **columns)
    del queries
    assert file.stat().st_size < 100_000
    before, held = pa.total_allocated_bytes(), list[int]()

    def checked(table: pa.Table) -> pa.Table:
        held.append(pa.total_allocated_bytes() - before)
        return check_rows(table)

    monkeypatch.setattr("jobs.inputs.interactions.check_rows", checked)
    log = read(file, num_bad=bad)
    assert max(held) < 60 << 20
    assert log["timestamp"].to_pylist() == [1.7e9] * good
    assert f"{bad - 1}: query is longer than 10,000 characters, first in row 301 of" in caplog.text
    assert "1: timestamp is not in ms, as the others are, between the years 2000 and 2100, first in row 5300 of" in (
        caplog.text
    )


def test_a_log_of_bad_rows_alone_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", query=[" ", None])
    with pytest.raises(DataError, match=r"interactions\.path: expected rows at"):
        read(file, num_bad=2)


# --- the unit of time ---

NOON_S = 1_700_000_000


@pytest.mark.parametrize("factor", [1, 10**3, 10**6, 10**9], ids=["s", "ms", "us", "ns"])
@pytest.mark.parametrize("type_", [pa.int64(), pa.float64(), pa.decimal128(38, 0), pa.string()], ids=str)
def test_unix_times_of_any_unit_become_seconds(tmp_path: Path, factor: int, type_: pa.DataType) -> None:
    times = pa.array([NOON_S * factor, (NOON_S + 60) * factor]).cast(type_, safe=False)
    assert read(write(tmp_path / "a.parquet", timestamp=times))["timestamp"].to_pylist() == [NOON_S, NOON_S + 60]


def test_each_file_has_a_unit_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", timestamp=[NOON_S, None])
    write(tmp_path / "b.parquet", timestamp=[None, NOON_S * 1000])
    assert read(tmp_path)["timestamp"].to_pylist() == [NOON_S, None, None, NOON_S]


@pytest.mark.parametrize("times", [[7, 8], [45_000.5, 45_001.5], [NOON_S * 60, NOON_S * 61], [20240102, 20240103]])
def test_times_in_no_recognisable_unit_are_refused(tmp_path: Path, times: list[float]) -> None:
    file = write(tmp_path / "a.parquet", timestamp=times)
    with pytest.raises(
        DataError, match=r"a\.parquet: expected column timestamp as unix seconds, or as milli-.*, got \d"
    ):
        read(file)


def test_a_time_of_another_unit_than_the_rest_is_a_bad_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = {name: [*column, column[0]] for name, column in GOOD.items()}
    file = write(tmp_path / "a.parquet", **columns, timestamp=[NOON_S * 1000, NOON_S * 1000, 0])
    assert read(file, num_bad=1)["timestamp"].to_pylist() == [NOON_S, NOON_S]
    assert "1: timestamp is not in ms, as the others are, between the years 2000 and 2100" in caplog.text


def test_a_log_without_rows_or_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"interactions\.path: expected a Parquet file or a folder of them"):
        read(tmp_path)
    pq.write_table(pa.table(GOOD).slice(0, 0), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"interactions\.path: expected rows at .*, got none in 1 files"):
        read(tmp_path)


def test_a_file_that_is_not_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match=r"a\.parquet: expected a Parquet file"):
        read(tmp_path)
