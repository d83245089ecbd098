"""The committed demo catalogue: what `make demo` builds from, and the tool that made it."""

import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexing.catalogue.contract import CONTRACT

DEMO = Path(__file__).parents[1] / "configs" / "demo"
MAX_BYTES = 400_000


@pytest.fixture(scope="module")
def demo_table() -> pa.Table:
    return pq.read_table(DEMO / "catalogue")


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    return runpy.run_path(str(DEMO / "make_catalogue.py"))


def test_demo_catalogue_has_the_columns_of_the_contract(demo_table: pa.Table) -> None:
    # By name and logical type: Parquet names the inside of a list "element", Arrow "item".
    types = {field.name: field.type for field in demo_table.schema}
    assert {field.name: types[field.name] == field.type for field in CONTRACT} == dict.fromkeys(CONTRACT.names, True)


def test_demo_catalogue_has_all_of_chinook(demo_table: pa.Table) -> None:
    counts = Counter(demo_table["item_type"].to_pylist())
    assert counts == {"track": 3503, "album": 347, "artist": 275, "genre": 25, "playlist": 18}


def test_demo_ids_are_unique_and_required_values_are_there(demo_table: pa.Table) -> None:
    ids = demo_table["item_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert all(item_id.strip() for item_id in ids)
    assert all(title.strip() for title in demo_table["title"].to_pylist())


def test_demo_text_has_no_broken_encoding(demo_table: pa.Table) -> None:
    for name in ("title", "parent_title", "description", "composer"):
        for text in filter(None, demo_table[name].to_pylist()):
            # UTF-8 read as Latin-1 shows as one of these before a character of the upper Latin-1 block.
            pairs = [first + second for first, second in pairwise(text) if first in "ÃÂâ"]
            assert not [pair for pair in pairs if "\x80" <= pair[1] <= "\xbf"], text
            assert "\N{REPLACEMENT CHARACTER}" not in text


def test_demo_catalogue_stays_small() -> None:
    assert sum(path.stat().st_size for path in (DEMO / "catalogue").iterdir()) < MAX_BYTES


def chinook_fixture() -> list[dict[str, Any]]:
    def record(model: str, pk: int, **fields: Any) -> dict[str, Any]:
        return {"model": f"chinook.{model}", "pk": pk, "fields": fields}

    track = {"album": 1, "milliseconds": 1000, "unit_price": 0.99, "mediatype": 1}
    return [
        record("artist", 1, name="Aisha Duo"),
        record("artist", 2, name="Nobody"),
        record("album", 1, title="Quiet Songs", artist=1),
        record("genre", 1, name="Jazz"),
        record("genre", 2, name="World"),
        *(record("track", pk, name=f"Song {pk}", genre=1, composer=None, **track) for pk in range(1, 10)),
        record("track", 10, name="Despertar", genre=2, composer="Luca Gusella", **track),
        record("playlist", 1, name="Evening"),
        record("playlist", 2, name="Empty"),
        record("playlisttrack", 1, playlist=1, track=10),
    ]


def test_a_track_knows_its_artist_album_and_playlists(maker: dict[str, Any]) -> None:
    track = maker["track_rows"](maker["Chinook"](chinook_fixture()))[-1]
    assert track == {
        "item_id": "track:10",
        "item_type": "track",
        "title": "Despertar",
        "creators": ["Aisha Duo"],
        "parent_title": "Quiet Songs",
        "genres": ["World"],
        "popularity": 1.0,
        "composer": "Luca Gusella",
        "duration_ms": 1000,
        "unit_price": 0.99,
    }


def test_descriptions_name_the_first_parts_and_count_the_rest(maker: dict[str, Any]) -> None:
    db = maker["Chinook"](chinook_fixture())
    (album,) = maker["album_rows"](db)
    assert album["description"] == f"Tracks: {', '.join(f'Song {pk}' for pk in range(1, 9))} and 2 more"
    assert album["genres"] == ["Jazz", "World"]
    assert [row["description"] for row in maker["artist_rows"](db)] == ["Albums: Quiet Songs", None]
    assert [row["description"] for row in maker["playlist_rows"](db)] == ["Artists: Aisha Duo", None]


def test_the_same_fixture_makes_the_same_bytes(maker: dict[str, Any], tmp_path: Path) -> None:
    fixture = chinook_fixture()
    maker["write_catalogue"](maker["Chinook"](fixture), tmp_path / "once")
    maker["write_catalogue"](maker["Chinook"](reversed(fixture)), tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (tmp_path / "once").iterdir()}
    assert sorted(files) == ["albums.parquet", "others.parquet", "tracks.parquet"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files
