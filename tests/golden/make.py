"""Makes the golden release of the current format version. Run once per version; what it wrote is never written again.

    PYTHONPATH=tests python tests/golden/make.py tests/golden/v2

A golden release is a store as publishing leaves it: two collections, four shards, a tiny encoder; and `answers.json`,
what a few queries find in it. From version 2 on, items share texts, and one shard has a delta and tombstones.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from support.tiny_encoder import DIM, write_tiny_encoder
from support.tiny_release import PARAMS, ReleaseMaker, make_release, send_files

from indexing import open_release
from indexing.encoder import EncoderSettings, encoder_files, load_encoder
from indexing.id_keys import id_keys, is_in
from indexing.key_ranges import shard_range
from indexing.release.commit import commit_release
from indexing.store import open_store

MOODS, PLACES = ("rainy", "sunny", "slow", "loud"), ("sunday", "night", "city")
SOUNDS = ("piano", "drums", "choir", "strings", "jazz")
TRACKS = [f"{mood} {place} {sound}" for mood in MOODS for place in PLACES for sound in SOUNDS]
SHOWS = [f"{topic} talk for {who}" for topic in ("history", "science") for who in ("kids", "nerds", "night owls")]
QUERIES = ["rainy sunday piano", "rainy sunday waltz", "science talk", "slow city jazz", "unknown words only"]


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model = write_tiny_encoder(work / "encoder", TRACKS + SHOWS)
        encoder = load_encoder(model, EncoderSettings(model=str(model), dtype="float32", max_tokens=64))
        maker = ReleaseMaker(work)
        texts = TRACKS + TRACKS[:10]
        tracks = maker.collection("tracks", [f"track:{i}" for i in range(70)], encoder.encode(texts), 3, texts)
        shard = maker.changed(tracks.shards[0], [0, 3], [new_id(3)], encoder.encode(["rainy sunday waltz"]))
        num_items = tracks.num_items - 1
        tracks = replace(tracks, num_items=num_items, shards=(shard, *tracks.shards[1:]))
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


def new_id(num_shards: int) -> str:
    """The id of an item of the first shard."""
    ids = [f"track:new-{number}" for number in range(50)]
    return ids[int(np.argmax(is_in(id_keys(ids), shard_range(0, num_shards))))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
