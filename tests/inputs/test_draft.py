"""A configuration drafted for a catalogue: what is guessed, and that it can be run as it is."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import scan

from indexing.errors import ConfigError, DataError
from jobs.__main__ import main
from jobs.config.load import load_config
from jobs.inputs.draft import MAX_TYPES, draft_config, guess_columns, scalar
from jobs.inputs.rows import check_part, row_rules

SONGS = [
    {"id": 1, "name": "So What", "artist": "Miles Davis; Bill Evans", "plays": 7, "type": "track", "year": 1959},
    {"id": 2, "name": "Kind of Blue", "artist": "Miles Davis", "plays": 9, "type": "albums", "year": 1959},
    {"id": 3, "name": "Solar", "artist": None, "plays": 1, "type": "track", "year": 1954},
    {"id": 4, "name": "Nardis", "artist": None, "plays": 1, "type": " ", "year": 1958},
]


@pytest.fixture(params=["songs.csv", "songs.jsonl.gz", "songs.parquet", "a folder/songs"])
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "data" / request.param
    path.parent.mkdir(parents=True)
    if path.suffix == ".csv":
        lines = [",".join(SONGS[0]), *(",".join(str(value or "") for value in song.values()) for song in SONGS)]
        path.write_text("\n".join(lines))
    elif path.suffix == ".gz":
        import gzip

        path.write_bytes(gzip.compress("\n".join(map(json.dumps, SONGS)).encode()))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(SONGS), path)
    else:
        path.mkdir()
        for number, song in enumerate(SONGS):
            pq.write_table(pa.Table.from_pylist([song], pa.Table.from_pylist(SONGS).schema), path / f"{number}.parquet")
    return path


def test_a_drafted_configuration_reads_the_catalogue_as_it_was_shown(
    catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = str(catalogue.relative_to(tmp_path))
    assert main(["init", given, "--out", "configs/my.yaml"]) == 0
    shown = capsys.readouterr().out
    config = load_config("configs/my.yaml")
    assert config.catalogue.path == str(catalogue)
    assert config.store == f"file://{tmp_path}/build/songs/store"
    assert {name: group.item_types for name, group in config.catalogue.collections.items()} == {
        "tracks": ["track"],
        "albums": ["albums"],
    }
    source = scan(config)
    tables = [good for part in source.parts for good, _ in check_part(part, row_rules(config, source))]
    good = pa.concat_tables([table.select(["item_id", "creators", "popularity", "text"]) for table in tables])
    assert good.to_pylist()[0] == {
        "item_id": "1",
        "creators": ["Miles Davis", "Bill Evans"],
        "popularity": 7.0,
        "text": "So What — Miles Davis, Bill Evans",
    }
    assert good.num_rows == 3
    assert "  So What — Miles Davis, Bill Evans\n" in shown
    assert "creators      artist, split at ;\n" in shown
    assert "with hits     year\n" in shown


def test_an_existing_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.Table.from_pylist(SONGS), tmp_path / "a.parquet")
    out = tmp_path / "my.yaml"
    out.write_text("mine")
    assert main(["init", str(tmp_path / "a.parquet"), "--out", str(out)]) == 2
    assert out.read_text() == "mine"
    assert "--out: expected a file that does not exist yet" in capsys.readouterr().err


def test_a_catalogue_with_the_contracts_own_names_needs_no_columns(tmp_path: Path) -> None:
    columns = {"item_id": ["1", "2"], "title": ["a", "b"], "item_type": ["track", "track"], "creators": [["x"], None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    draft = draft_config(str(tmp_path / "a.parquet"), tmp_path / "my.yaml")
    assert "columns:" not in draft.yaml
    assert draft.carried == []


def guess(**columns: Any) -> dict[str, Any]:
    return guess_columns(pa.table({"id": ["1", "2"], "title": ["a", "b"], **columns}), "a.csv")


@pytest.mark.parametrize(
    ("columns", "target", "source"),
    [
        ({"Track_URI": ["x", "y"], "id": ["1", "1"]}, "item_id", "Track_URI"),
        ({"Artist Name(s)": ["x", None]}, "creators", "Artist Name(s)"),
        ({"artist": ["x", "y; z"]}, "creators", {"from": "artist", "split": ";"}),
        ({"artist": ["Earth, Wind & Fire", "x"]}, "creators", "artist"),
        ({"genre": ["pop, rock", "x"]}, "genres", {"from": "genre", "split": ","}),
        ({"genres": [["pop"], ["rock"]]}, "genres", "genres"),
        ({"show": ["x", "y"], "album": ["z", "w"]}, "parent_title", "album"),
        ({"plays": ["many", "7"]}, "popularity", None),
        ({"views": ["1e3", ""]}, "popularity", "views"),
        ({"summary": [1.5, 2.5]}, "description", None),
        ({"lang": ["en", "de"]}, "language", "lang"),
        ({"kind": ["track", "show"]}, "item_type", "kind"),
        ({"other": ["x", "y"]}, "item_type", None),
    ],
)
def test_a_column_is_guessed_by_its_name_and_by_whether_its_values_fit(
    columns: dict[str, Any], target: str, source: object
) -> None:
    assert guess(**columns).get(target) == source


def test_a_type_with_very_many_values_is_no_item_type(tmp_path: Path) -> None:
    count = MAX_TYPES + 1
    columns = {"id": list(range(count)), "title": ["a"] * count, "type": [f"kind {number}" for number in range(count)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    draft = draft_config(str(tmp_path / "a.parquet"), tmp_path / "my.yaml")
    assert "item_type" not in draft.columns
    assert draft.carried == ["type"]
    assert "items: {item_types: [item]}" in draft.yaml


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (
            {"name": ["a"]},
            DataError,
            "a.parquet: expected a column for item_id, with a name such as .*, got name; write a",
        ),
        ({"id": [1]}, DataError, "expected a column for title, with a name such as title, name, .*, got id"),
        (
            {"id": [1], "title": [" "]},
            DataError,
            "expected a good row, got 1 bad ones; the first: title is null or blank",
        ),
        ({"id": pa.array([], pa.int64())}, DataError, "a.parquet: expected rows, got none"),
        (None, ConfigError, "expected a Parquet, CSV or JSON lines file or a folder of them, found none"),
    ],
)
def test_what_cannot_be_guessed_is_said_and_nothing_is_written(
    tmp_path: Path, columns: dict[str, Any] | None, error: type[Exception], message: str
) -> None:
    if columns:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(error, match=message):
        draft_config(str(tmp_path / "a.parquet"), tmp_path / "my.yaml")
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", "id,name\n1,a\n1,b\n", DataError, "such as .* and distinct values, got id, name; write a"),
        ("a.csv", b"id,name\n1,caf\xe9\n", DataError, "got 1 bad ones; the first: a string is not valid UTF-8"),
        ("a.jsonl", '[{"id": 1}]', DataError, "got 1 bad ones; the first: expected a JSON object in UTF-8"),
        ("a.xlsx", b"PK", ConfigError, "Parquet, CSV or JSON lines file, whose name ends with .parquet, .csv, .*xlsx"),
        ("a.csv", "id,title\n", DataError, "a.csv: expected rows, got none"),
    ],
)
def test_what_cannot_be_read_is_said_in_terms_of_the_file(
    tmp_path: Path, name: str, content: str | bytes, error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        draft_config(str(tmp_path / name), tmp_path / "my.yaml")


def test_a_text_that_is_not_utf8_costs_its_row_and_not_the_guess(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,name\n1,caf\xe9\n2,b\n")
    assert draft_config(str(tmp_path / "a.csv"), tmp_path / "my.yaml").texts == ["b"]


def test_tabs_may_separate_the_fields(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\tname\n1\ta, b\n")
    assert draft_config(str(tmp_path / "a.tsv"), tmp_path / "my.yaml").texts == ["a, b"]


def test_a_folder_in_which_the_store_would_lie_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("id,name\n1,a\n")
    with pytest.raises(ConfigError, match=r"catalogue\.path: .* contains the store file://.*/build/catalogue/store"):
        draft_config(".", Path("my.yaml"))


@pytest.mark.parametrize(
    "text", ["a", "Artist Name(s)", "", " ", "null", "yes", "1", "a: b", "a, b", "ü", "'", '"', ";", "#"]
)
def test_every_text_is_itself_in_the_yaml(text: str, tmp_path: Path) -> None:
    import yaml

    assert yaml.safe_load(f"{{a: {scalar(text)}, b: [{scalar(text)}]}}") == {"a": text, "b": [text]}
