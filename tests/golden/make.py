"""Makes the golden release of the current format version. Run once per version; what it wrote is never written again.

    PYTHONPATH=tests python tests/golden/make.py tests/golden/v1

A golden release is a store as publishing leaves it: two collections, three shards, a tiny encoder; and `answers.json`,
what a few queries find in it.
"""

import json
import sys
import tempfile
from pathlib import Path

from support.tiny_encoder import DIM, write_tiny_encoder
from support.tiny_release import PARAMS, ReleaseMaker, make_release, send_files

from indexing import open_release
from indexing.encoder import EncoderSettings, encoder_files, load_encoder
from indexing.release.commit import commit_release
from indexing.store import open_store

MOODS, PLACES = ("rainy", "sunny", "slow", "loud"), ("sunday", "night", "city")
SOUNDS = ("piano", "drums", "choir", "strings", "jazz")
TRACKS = [f"{mood} {place} {sound}" for mood in MOODS for place in PLACES for sound in SOUNDS]
SHOWS = [f"{topic} talk for {who}" for topic in ("history", "science") for who in ("kids", "nerds", "night owls")]
QUERIES = ["rainy sunday piano", "science talk", "slow city jazz", "unknown words only"]


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = write_tiny_encoder(work / "encoder", TRACKS + SHOWS)
        encoder = load_encoder(model, EncoderSettings(model=str(model), dtype="float32", max_tokens=64))
        maker = ReleaseMaker(work)
        tracks = maker.collection("tracks", [f"track:{i}" for i in range(len(TRACKS))], encoder.encode(TRACKS), 2)
        shows = maker.collection("shows", [f"show:{i}" for i in range(len(SHOWS))], encoder.encode(SHOWS))
        entry = maker.encoder(model, encoder_files(model), DIM)
        store = open_store(str(folder / "store"))
        send_files(store, maker.files)
        release = make_release(1, tracks, shows, encoder=entry, dim=DIM, index=PARAMS, name="golden")
        commit_release(store, release)
        found = open_release(store.url, cache_dir=work / "cache").search(QUERIES, k=5)
    answers = {
        query: [[hit.item_id, hit.collection, round(hit.score, 5)] for hit in hits]
        for query, hits in zip(QUERIES, found, strict=True)
    }
    (folder / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
