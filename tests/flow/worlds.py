"""A small made-up catalogue, its configuration, and runs of nightcrate over it: what every flow test starts from."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from support.tiny_release import ReleaseMaker

from indexing.encoder import EncoderSettings, encoder_files, load_encoder
from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.store import open_store
from jobs.__main__ import main
from jobs.config.load import load_config
from jobs.nightly import Outcome, run_night
from jobs.progress import Progress
from jobs.run import open_run

ROOT = Path(__file__).parents[2]
RAY_TOKEN = secrets.token_hex(32)
"""One for all tests of a process: Ray reads its token once and keeps it."""
SYLLABLES = [
    a + b
    for a in ["ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu"]
    for b in ["lark", "mint", "rose", "wave", "storm", "glow"]
]
NUM_TRACKS, NUM_SHOWS, NUM_EPISODES = 360, 40, 100
NUM_SAME_TITLE = 24
"""Tracks whose title, all of their text, is that of the first track."""
VECTORS = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
IDS = [f"item-{number:03}" for number in range(len(VECTORS))]
"""Precomputed vectors, float32 (num_items, dim), and their items."""


def words(generator: np.random.Generator, count: int) -> str:
    return " ".join(generator.choice(SYLLABLES, count))


def make_rows(seed: int = 0) -> list[dict[str, Any]]:
    """Good rows of all item types; `isrc` and `year` are columns beyond the contract."""
    generator = np.random.default_rng(seed)
    counts = {"track": NUM_TRACKS, "show": NUM_SHOWS, "episode": NUM_EPISODES}
    rows = [
        {
            "item_id": f"{kind}-{number:03}",
            "item_type": kind,
            "title": words(generator, 5),
            "creators": [words(generator, 2) for _ in range(number % 3)],
            "description": words(generator, 25),
            "isrc": f"XX-{kind}-{number}",
            "year": 1960 + number % 60,
        }
        for kind, count in counts.items()
        for number in range(count)
    ]
    for row in rows[1 : NUM_SAME_TITLE + 1]:
        row["title"] = rows[0]["title"]
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)


def make_config(folder: Path, model: Path) -> dict[str, Any]:
    """Store, workspace and catalogue in `folder`; one encoder, so that a run costs one load of torch."""
    return {
        "name": "flow",
        "store": f"file://{folder}/store",
        "workspace": f"file://{folder}/workspace",
        "catalogue": {
            "path": f"{folder}/catalogue",
            "collections": {"tracks": {"item_types": ["track"]}, "shows": {"item_types": ["show", "episode"]}},
            "text": {"default": "{title} — {creators} — {description}", "track": "{title}"},
        },
        # Few texts per batch: encoding takes long enough that a kill hits it midway.
        "encoder": {"model": str(model), "max_tokens": 64, "batch_tokens": 64},
        "index": {"rows_per_shard": 150, "M": 8, "ef_construction": 60},
        "ray": {"encode_actors": 1},
    }


def publish_without_ray(folder: Path, model: Path, num_releases: int = 2) -> str:
    """A store with releases of 40 tracks and 12 shows, whose ids are their texts, by the encoder `model`; its URL."""
    generator = np.random.default_rng(1)
    texts = [words(generator, 4) for _ in range(52)]
    vectors = load_encoder(model, EncoderSettings(model=str(model), device="cpu")).encode(texts)
    maker, store = ReleaseMaker(folder), open_store(f"file://{folder}/store")
    collections = (
        maker.collection("tracks", texts[:40], vectors[:40], num_shards=2),
        maker.collection("shows", texts[40:], vectors[40:]),
    )
    figures = {"tracks": {"items": {"recall_at_10": 0.97125}}, "shows": {"items": {"recall_at_10": 1.0}}}
    encoder = maker.encoder(model, encoder_files(model), vectors.shape[1])
    for _ in range(num_releases):
        maker.publish(store, *collections, encoder=encoder, dim=vectors.shape[1], validation=figures)
    return store.url


def write_vectors(folder: Path, num_items: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"item_id": IDS, "label": [f"label {item_id}" for item_id in IDS], "vector": list(VECTORS)}
    pq.write_table(pa.table(columns).slice(0, num_items), folder / "vectors.parquet", row_group_size=100)


@dataclass(frozen=True)
class Night:
    """What one run has made, and how long each stage took; a stage that was skipped is not in `seconds`."""

    outcome: Outcome
    seconds: dict[str, float]

    @property
    def num_encoded(self) -> int:
        return self.outcome.encoded.num_encoded if self.outcome.encoded and "encode" in self.seconds else 0

    @property
    def quarantined(self) -> dict[str, int]:
        """Reason → number of rows."""
        assert self.outcome.prepared is not None
        return self.outcome.prepared.quarantined

    @property
    def release(self) -> Release:
        assert self.outcome.published is not None
        return self.outcome.published.release


@dataclass(frozen=True)
class World:
    """A folder with a catalogue and a configuration, and all that runs over it leave."""

    folder: Path
    config: dict[str, Any]

    def write_config(self) -> Path:
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(self.config))  # JSON is YAML too
        return path

    def changed(self, **sections: Any) -> "World":
        """This world with keys of the configuration replaced, those of a section one by one."""
        config = {
            name: {**self.config.get(name, {}), **value} if isinstance(value, dict) else value
            for name, value in sections.items()
        }
        return replace(self, config={**self.config, **config})

    def copied(self, folder: Path) -> "World":
        """The same files and settings in another folder."""
        shutil.copytree(self.folder, folder)
        config = json.loads(json.dumps(self.config).replace(str(self.folder), str(folder)))
        return World(folder, config)

    def run(self, last_stage: str = "publish", *overrides: str) -> Night:
        """Runs the stages up to `last_stage` in this process; raises what they raise."""
        progress = Progress(Console(quiet=True))
        outcome = run_night(open_run(load_config(str(self.write_config()), overrides), progress), last_stage)
        return Night(outcome, progress.seconds)

    def command(self, stage: str, *arguments: str) -> int:
        """The exit code of `nightcrate STAGE -c CONFIG …`, run in this process."""
        return main([stage, "-c", str(self.write_config()), *arguments])

    def start(self, stage: str = "nightly", *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """The same as a separate process."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", stage, "-c", str(self.write_config()), *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def store_url(self) -> str:
        return str(self.config["store"])

    def releases(self) -> list[Release]:
        store = open_store(self.store_url)
        return [read_release(store, number) for number in release_numbers(store)]

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file below the folder with size and time of change: equal before and after, nothing was written.

        Left out are records of runs, which a run leaves in any case.
        """
        found = [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "config.yaml" and path.parent.name != "runs"
        ]
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def shard_digests(release: Release) -> dict[str, tuple[str, ...]]:
    """collection/number → digests of index, items and metadata, then of what was added since."""
    return {
        f"{collection.name}/{shard.number}": tuple(blob.sha256 for _, blob in shard.blobs())
        for collection in release.collections
        for shard in collection.shards
    }


def descendants(pid: int) -> set[int]:
    """All processes below `pid`, by /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue

    def below(parent: int) -> Iterator[int]:
        for child in (child for child, its_parent in parents.items() if its_parent == parent):
            yield child
            yield from below(child)

    return set(below(pid))


def is_running(pid: int) -> bool:
    """False for a zombie too, which only waits for its parent to take note."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_refused(world: World) -> None:
    """Nothing new in the store, and a report that names a gate that fails."""
    assert [release.number for release in world.releases()] == [1]
    (path,) = world.folder.glob("workspace/validations/*/failed.json")
    assert not all(gate["holds"] for gate in json.loads(path.read_text())["gates"])


def vector_world(folder: Path) -> World:
    """A world with precomputed vectors: no encoder, no torch, two shards."""
    write_vectors(folder, len(IDS))
    config = {
        "name": "vectors",
        "store": f"file://{folder}/store",
        "workspace": f"file://{folder}/workspace",
        "catalogue": {"collections": {"tracks": {"item_types": ["track"]}}},
        "vectors": {"path": f"{folder}/vectors.parquet"},
        "index": {"rows_per_shard": 150, "M": 8, "ef_construction": 60},
    }
    return World(folder, config)
