"""Where rows come from: which files are read, how they are cut, and when the fingerprint changes."""

import json
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import scan

import jobs.inputs.catalogue
from indexing.catalogue.contract import CONTRACT, STRINGS, conform_table
from indexing.errors import ConfigError, DataError
from indexing.store import open_store
from jobs.config.load import load_config
from jobs.config.schema import LIST_COLUMNS, Column, Config
from jobs.inputs.catalogue import Part, Source
from jobs.inputs.queries import read_queries
from jobs.inputs.rows import check_part, row_rules


def rows(*item_ids: str, **columns: Any) -> pa.Table:
    count = len(item_ids)
    return pa.table({"item_id": list(item_ids), "item_type": ["track"] * count, "title": ["t"] * count, **columns})


def write(folder: Path, **tables: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")


def config_of(path: Path, **changes: Any) -> Config:
    content = {
        "name": "n",
        "store": f"file://{path.parent}/own/store",
        "workspace": f"file://{path.parent}/own/workspace",
        "catalogue": {"path": str(path), "collections": {"tracks": {"item_types": ["track"]}}},
    }
    file = path.parent / "config.yaml"
    file.write_text(json.dumps({**content, **changes}))
    return load_config(str(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "catalogue"


def scan_path(path: Path, **changes: Any) -> Source:
    return scan(config_of(path, **changes))


def ids_of(part: Part) -> list[str]:
    return [item_id for batch in part.batches() for item_id in batch["item_id"].to_pylist()]


def test_a_folder_is_read_in_order_of_names_and_with_its_sub_folders(folder: Path) -> None:
    write(folder, b=rows("3"), a=rows("1", "2"))
    write(folder / "sub", c=rows("4"))
    (folder / "README.md").write_text("not Parquet")
    source = scan_path(folder)
    assert [ids_of(part) for part in source.parts] == [["1", "2"], ["3"], ["4"]]
    assert [part.number for part in source.parts] == [0, 1, 2]
    assert source.num_rows == 4


def test_footers_are_read_several_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request each, where the catalogue is on S3: one after the other, a thousand files take minutes."""
    all_at_once, scan_file = threading.Barrier(8), jobs.inputs.catalogue.scan_file

    def wait_and_scan(*arguments: Any) -> Any:
        all_at_once.wait(timeout=60)
        return scan_file(*arguments)

    monkeypatch.setattr(jobs.inputs.catalogue, "scan_file", wait_and_scan)
    write(folder, **{str(number): rows(str(number)) for number in range(8)})
    assert [part.key for part in scan_path(folder).parts] == [f"{number}.parquet" for number in range(8)]


def test_a_folder_may_be_called_like_a_file(tmp_path: Path) -> None:
    write(tmp_path / "all.parquet", part=rows("1"))
    assert ids_of(scan_path(tmp_path / "all.parquet").parts[0]) == ["1"]


def test_one_file_is_read_alone(folder: Path) -> None:
    write(folder, a=rows("1"), b=rows("2"))
    assert ids_of(scan_path(folder / "b.parquet").parts[0]) == ["2"]


def test_a_catalogue_in_any_store_is_read(store_url: str, tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(rows("1", "2"), sink)
    open_store(store_url).put("catalogue/a.parquet", sink.getvalue().to_pybytes())
    config = config_of(tmp_path / "x", catalogue={"path": f"{store_url}/catalogue", **COLLECTIONS})
    (part,) = scan(config).parts
    assert ids_of(part) == ["1", "2"]


COLLECTIONS = {"collections": {"tracks": {"item_types": ["track"]}}}


def test_files_are_cut_between_row_groups_into_parts_of_bounded_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.inputs.catalogue, "PART_ROWS", 250)
    write(folder, a=rows("x"))
    pq.write_table(rows(*map(str, range(1000))), folder / "b.parquet", row_group_size=100)
    _, *parts = scan_path(folder).parts
    assert [part.number for part in parts] == [1, 2, 3, 4, 5]
    assert [part.first_row for part in parts] == [0, 200, 400, 600, 800]
    assert [value for part in parts for value in ids_of(part)] == list(map(str, range(1000)))


def test_a_row_group_larger_than_a_part_is_a_part_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.inputs.catalogue, "PART_ROWS", 100)
    write(folder, a=rows(*map(str, range(300))))
    assert [len(ids_of(part)) for part in scan_path(folder).parts] == [300]


def test_files_with_different_columns_are_read_as_one_schema(folder: Path) -> None:
    write(folder, a=rows("1", year=[1959]), b=rows("2", label=["Blue Note"]), c=rows("3"))
    schema = scan_path(folder).schema
    assert schema.names[-2:] == ["year", "label"]
    assert schema.field("year").type == pa.int64()


def test_part_files_of_two_writers_are_read_as_one_with_the_wider_type(folder: Path) -> None:
    moment = datetime(2024, 1, 2)
    write(folder, a=rows("1", plays=[1], label=["x"], at=pa.array([moment], pa.timestamp("ms"))))
    write(
        folder,
        b=rows("2", plays=[1.5], label=pa.array(["y"]).dictionary_encode(), at=pa.array([moment], pa.timestamp("us"))),
    )
    source = scan_path(folder)
    table = pa.concat_tables([conform_table(batch, source.schema) for part in source.parts for batch in part.batches()])
    assert table.select(["plays", "label", "at"]).to_pylist() == [
        {"plays": 1.0, "label": "x", "at": moment},
        {"plays": 1.5, "label": "y", "at": moment},
    ]


def test_a_column_with_two_types_that_have_none_in_common_is_refused_naming_the_file(folder: Path) -> None:
    write(folder, a=rows("1", year=[1959]), b=rows("2", year=["1959"]))
    message = r"b\.parquet: expected column year as int64, as in earlier files, got string"
    with pytest.raises(DataError, match=message):
        scan_path(folder)


def test_the_fingerprint_follows_names_and_content_alone(folder: Path, tmp_path: Path) -> None:
    write(folder, a=rows("1"), b=rows("2"))
    first = scan_path(folder).fingerprint
    write(tmp_path / "copy", a=rows("1"), b=rows("2"))
    assert scan_path(tmp_path / "copy").fingerprint == first
    write(folder, b=rows("3"))
    changed = scan_path(folder).fingerprint
    (folder / "b.parquet").rename(folder / "c.parquet")
    assert len({first, changed, scan_path(folder).fingerprint}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "collection",
        "fingerprint",
        "id_key",
        "reason",
        "source_file",
        "source_part",
        "source_row",
        "text",
    ],
)
def test_a_column_that_the_stages_would_overwrite_is_refused_by_name(folder: Path, name: str) -> None:
    write(folder, a=rows("1", **{name: ["x"]}))
    with pytest.raises(DataError, match=rf"a\.parquet: the column {name} has a name .* rename it"):
        scan_path(folder)


# --- what does not exist, or is not Parquet ---


@pytest.mark.parametrize("name", ["nothing", "nothing.parquet", "nothing/deeper"])
def test_a_catalogue_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ConfigError, match=re.escape(f"found none at {path}")) as caught:
        scan(config_of(tmp_path / "x", catalogue={"path": str(path), **COLLECTIONS}))
    assert str(caught.value).startswith(
        "catalogue.path: expected a Parquet, CSV or JSON lines file or a folder of them"
    )
    assert not path.exists()


def test_a_folder_without_rows_files_is_named(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.xlsx").write_text("item_id")
    with pytest.raises(ConfigError, match="expected a Parquet, CSV or JSON lines file or a folder of them"):
        scan_path(folder)


@pytest.mark.case(31)
def test_files_of_two_kinds_which_may_hold_the_same_rows_are_refused(folder: Path) -> None:
    write(folder, a=rows("1"))
    (folder / "a.csv").write_text("item_id")
    message = r"catalogue\.path: expected files of one kind at .*, got CSV \(a\.csv\) and Parquet \(a\.parquet\); name"
    with pytest.raises(ConfigError, match=message):
        scan_path(folder)


@pytest.mark.case(19)
def test_files_without_rows_are_an_empty_catalogue(folder: Path) -> None:
    write(folder, a=rows(), b=rows())
    with pytest.raises(DataError, match=re.escape(f"catalogue.path: expected rows at {folder}, got none in 2 files")):
        scan_path(folder)


@pytest.mark.parametrize("name", ["source_row", "nightcrate:row", "nightcrate:reason"])
def test_a_column_with_a_name_that_the_stages_need_is_refused(folder: Path, name: str) -> None:
    write(folder, a=rows("1", **{name: [7]}))
    with pytest.raises(DataError, match=rf"a\.parquet: the column {name} has a name that is reserved"):
        scan_path(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not Parquet at all", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_named(folder: Path, content: bytes) -> None:
    folder.mkdir()
    (folder / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: expected a Parquet file") as caught:
        scan_path(folder)
    assert "\n" not in str(caught.value)


def test_a_parquet_whose_data_is_damaged_is_named(folder: Path) -> None:
    write(folder, a=rows(*map(str, range(1000))))
    data = bytearray((folder / "a.parquet").read_bytes())
    data[4:400] = b"\xff" * 396
    (folder / "a.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet"):
        list(scan_path(folder).parts[0].batches())


# --- queries ---


def test_queries_are_the_distinct_ones_that_are_not_blank(folder: Path) -> None:
    write(folder, a=pa.table({"query": ["b", "a", None, " ", ""]}), b=pa.table({"query": ["b", "c"], "other": [1, 2]}))
    assert read_queries(str(folder), None, "--queries") == ["a", "b", "c"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a"], pa.large_string()),
        pa.array(["a"], pa.string_view()),
        pa.array(["a"]).dictionary_encode(),
        pa.array([b"a", b"caf\xe9"]),
    ],
    ids=lambda column: str(column.type),
)
def test_queries_are_strings_of_any_kind(folder: Path, column: pa.Array) -> None:
    write(folder, a=pa.table({"query": column}))
    assert read_queries(str(folder), None, "--queries") == ["a"]


@pytest.mark.case(19)
def test_queries_that_cannot_be_searched_for_are_left_out_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder, a=pa.table({"query": [b"a", b"b" * 10_000, b"c" * 10_001, b"caf\xe9"]}))
    assert read_queries(str(folder), None, "--queries") == ["a", "b" * 10_000]
    said = ("not UTF-8", "longer than 10,000 characters")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        f"1 queries that are {reason} are left out" for reason in said
    ]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"text": ["a"]}), "expected a column query of texts, got text"),
        (pa.table({"query": np.arange(3.0)}), "expected a column query of texts, got query"),
        (pa.table({"query": [" ", None]}), "expected queries in"),
        (pa.table({"query": pa.array([], pa.string())}), "expected queries in"),
    ],
)
def test_invalid_queries_are_refused(folder: Path, table: pa.Table, message: str) -> None:
    write(folder, a=table)
    with pytest.raises(DataError, match=message):
        read_queries(str(folder), None, "--queries")


# --- CSV and JSON lines, and columns under other names ---

SONGS = [("1", "So What", "Miles Davis; Bill Evans", "1959"), ("2", "Solar", "", "")]
COLUMNS = {"item_id": "id", "title": "name", "creators": {"from": "artist", "split": ";"}}
NAMED = {**COLLECTIONS, "columns": COLUMNS}


def write_songs(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("id", "name", "artist", "year")
    if path.suffix == ".csv":
        lines = [",".join(names), *(",".join(song) for song in SONGS)]
    else:
        lines = [json.dumps({name: value or None for name, value in zip(names, song, strict=True)}) for song in SONGS]
    path.write_text("\n".join(lines))
    return path


def good_items(path: Path, **catalogue: Any) -> list[dict[str, Any]]:
    config = config_of(path, catalogue={"path": str(path), **NAMED, **catalogue})
    source = scan(config)
    rules = row_rules(config, source)
    tables = [good for part in source.parts for good, _ in check_part(part, rules)]
    return [row for table in tables for row in table.select([*source.schema.names, "text"]).to_pylist()]


@pytest.mark.parametrize("name", ["songs.csv", "songs.jsonl"])
def test_rows_of_a_text_file_are_those_of_a_parquet_file(folder: Path, name: str) -> None:
    items = good_items(write_songs(folder / name))
    assert [(item["item_id"], item["item_type"], item["year"]) for item in items] == [
        ("1", "track", "1959"),
        ("2", "track", None),
    ]
    assert [item["text"] for item in items] == ["So What — Miles Davis, Bill Evans", "Solar"]
    columns = {name: [song[number] or None for song in SONGS] for number, name in enumerate(["id", "name", "artist"])}
    pq.write_table(pa.table({**columns, "year": ["1959", None]}), folder.parent / "songs.parquet")
    assert good_items(folder.parent / "songs.parquet") == items


def test_a_text_file_is_converted_once_and_again_when_it_has_changed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_of(write_songs(folder / "songs.csv").parent, catalogue={"path": str(folder), **NAMED})
    first = scan(config)
    again = scan(config)
    assert (again.fingerprint, [part.key for part in again.parts]) == (
        first.fingerprint,
        [part.key for part in first.parts],
    )
    assert len(caplog.messages) == 1
    (folder / "songs.csv").write_text("id,name,artist\n1,Solar,\n")
    changed = scan(config)
    assert changed.fingerprint != first.fingerprint
    assert next(changed.parts[0].batches())["title"].to_pylist() == ["Solar"]


def test_a_conversion_that_was_killed_is_made_from_scratch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(write_songs(folder / "songs.csv").parent, catalogue={"path": str(folder), **NAMED})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jobs.workspace.artifact.Artifact.write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        scan(config)
    assert scan(config).num_rows == len(SONGS)


def test_blocks_of_a_text_file_with_other_types_are_read_as_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.inputs.text_files.TABLE_BYTES", 10)
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"id": 1, "name": "a", "plays": 1}\n{"id": "x2", "name": "b", "plays": 1.5}\n')
    items = good_items(folder, columns={"item_id": "id", "title": "name"})
    assert [(item["item_id"], item["plays"]) for item in items] == [("1", 1.0), ("x2", 1.5)]


@pytest.mark.case(19)
def test_a_line_of_a_text_file_that_is_no_row_is_a_bad_row_of_its_file(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.csv").write_text("id,name,artist\n1,So What,\n2\n,Solar,\n")
    config = config_of(folder, catalogue={"path": str(folder), **NAMED})
    source = scan(config)
    ((good, bad),) = check_part(source.parts[0], row_rules(config, source))
    assert (source.num_rows, good["item_id"].to_pylist()) == (3, ["1"])
    assert sorted((row["source_file"], row["source_row"], row["reason"]) for row in bad.to_pylist()) == [
        ("a.csv", 2, "expected 3 fields, got 1"),
        ("a.csv", 3, "item_id is null or blank"),
    ]


@pytest.mark.case(19)
def test_bytes_that_are_no_utf8_cost_their_row_of_a_csv_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.csv").write_bytes(b"id,name,artist\n1,So What,a;b\n2,Solar,a;caf\xe9\n3,caf\xe9,\n")
    config = config_of(folder, catalogue={"path": str(folder), **NAMED})
    source = scan(config)
    ((good, bad),) = check_part(source.parts[0], row_rules(config, source))
    assert good["creators"].to_pylist() == [["a", "b"]]
    assert bad["reason"].to_pylist() == ["a string is not valid UTF-8"] * 2


def test_columns_may_be_swapped_and_one_may_serve_twice(folder: Path) -> None:
    write(folder, a=pa.table({"title": ["album"], "parent_title": ["song"], "id": [7]}))
    columns = {"title": "parent_title", "parent_title": "title", "item_id": "id", "language": "id"}
    (item,) = good_items(folder, columns=columns)
    assert (item["title"], item["parent_title"], item["item_id"], item["language"]) == ("song", "album", "7", "7")


def test_what_a_catalogue_calls_its_columns_is_part_of_its_fingerprint(folder: Path) -> None:
    write(folder, a=rows("1", name=["n"]))
    plain, named = (
        scan_path(folder),
        scan_path(folder, catalogue={"path": str(folder), **COLLECTIONS, "columns": {"title": "name"}}),
    )
    assert plain.fingerprint != named.fingerprint


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"title": "nam"}, "catalogue.columns.title: the catalogue has no column 'nam'; did you mean 'name'"),
        (
            {"title": "zzz"},
            "catalogue.columns.title: the catalogue has no column 'zzz'; columns are item_id, item_type",
        ),
        ({"creators": {"from": "plays", "split": ";"}}, r"creators.split: expected texts in column plays, got int64"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_by_name(folder: Path, columns: dict[str, Any], message: str) -> None:
    write(folder, a=rows("1", name=["n"], plays=[1]))
    with pytest.raises(DataError, match=message):
        scan_path(folder, catalogue={"path": str(folder), **COLLECTIONS, "columns": columns})


def test_a_column_with_a_name_of_the_stages_can_be_mapped(folder: Path) -> None:
    write(folder, a=rows("1", text=["long"]))
    (item,) = good_items(folder, columns={"description": "text"})
    assert item["description"] == "long"


def test_the_names_that_can_be_mapped_are_those_of_the_contract() -> None:
    assert list(get_args(Column)) == CONTRACT.names
    assert [name for name in CONTRACT.names if CONTRACT.field(name).type == STRINGS] == list(LIST_COLUMNS)


# --- what is not data ---


@pytest.mark.case(31)
@pytest.mark.parametrize(
    "name",
    [
        "_temporary/0/part-1.parquet",
        "sub/_temporary/part-1.parquet",
        ".ipynb_checkpoints/a-checkpoint.parquet",
        "._a.parquet",
        "_a.parquet",
        "sub/.hidden.parquet",
    ],
)
def test_what_begins_with_an_underscore_or_a_dot_is_no_data(folder: Path, name: str) -> None:
    write(folder, a=rows("1"))
    write((folder / name).parent, **{Path(name).stem: rows("2")})
    assert [part.name for part in scan_path(folder).parts] == ["a.parquet"]
    (folder / "a.parquet").unlink()
    with pytest.raises(ConfigError, match=r"found none at .*; 1 are skipped, since a name begins with _ or \."):
        scan_path(folder)


def test_a_file_or_folder_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    write(tmp_path / "_data", _a=rows("1"), b=rows("2"))
    assert read_ids(tmp_path / "_data" / "_a.parquet") == ["1"]
    assert read_ids(tmp_path / "_data") == ["2"]


def read_ids(path: Path) -> list[str]:
    return [
        item_id for part in scan_path(path).parts for rows in part.batches() for item_id in rows["item_id"].to_pylist()
    ]


@pytest.mark.case(31)
@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        ("sub/_delta_log/00000000000000000010.checkpoint.parquet", "Delta"),
        ("metadata/v2.metadata.json", "Iceberg"),
        ("tracks/metadata/00001-abc.metadata.json", "Iceberg"),
        (".hoodie/hoodie.properties", "Hudi"),
    ],
)
def test_a_table_whose_log_says_which_files_count_is_refused_by_name(folder: Path, log: str, kind: str) -> None:
    write(folder, a=rows("1"))
    (folder / log).parent.mkdir(parents=True)
    (folder / log).write_text("{}")
    message = (
        rf"catalogue\.path: expected files of rows at .*, got a table in {kind}'s format \({re.escape(log)}\), .*export"
    )
    with pytest.raises(DataError, match=message):
        scan_path(folder)


def test_folders_called_like_hives_give_columns(folder: Path) -> None:
    write(folder / "language=en" / "label=Blue%20Note", a=rows("1"))
    write(folder / "language=__HIVE_DEFAULT_PARTITION__" / "label=ECM", a=rows("2"))
    write(folder / "language=de" / "_year=2024" / "popularity=1.5", a=rows("3", language=["fr"]))
    first, second, third = good_items(folder, columns={})
    assert (first["item_id"], third["item_id"], second["item_id"]) == ("2", "1", "3")
    assert [(item["language"], item["label"]) for item in (first, third)] == [(None, "ECM"), ("en", "Blue Note")]
    assert (second["language"], second["_year"], second["popularity"]) == ("fr", "2024", 1.5)


def test_a_column_of_folders_can_be_mapped_and_be_the_item_type(folder: Path) -> None:
    for kind in ("track", "show"):
        write(folder / f"kind={kind}", a=pa.table({"item_id": [kind], "title": ["t"]}))
    collections = {"all": {"item_types": ["track", "show"]}}
    items = good_items(folder, columns={"item_type": "kind"}, collections=collections)
    assert [(item["item_id"], item["item_type"]) for item in items] == [("show", "show"), ("track", "track")]
