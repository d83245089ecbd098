"""Two nights of a small catalogue: the second brings other rows, and is what the faults happen to."""

import io
import json
import os
import shutil
import time
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flow.worlds import World, make_config, make_rows, write_rows

from indexing.release.manifest import Release
from indexing.store import Store, open_store
from indexing.store.local import LocalStore

DIM = 16
NUM_CHANGED = 60
LIMIT_S = 170.0


@dataclass(frozen=True)
class Nights:
    """A world after its first night, with the catalogue of the second in place, and what the second should publish."""

    world: World
    first: Release
    second: Release
    reference: World
    """A copy in which the second night has passed undisturbed."""

    def disturbed(self, folder: Path, store_url: str, *, endpoint: str | None = None) -> World:
        """The state before the second night, with store and workspace moved below `store_url`."""
        shutil.copytree(self.world.folder, folder)
        config = json.loads(json.dumps(self.world.config).replace(str(self.world.folder), str(folder)))
        moved = {name: f"{store_url}/{name}" for name in ("store", "workspace")}
        for name, url in moved.items():
            copy_store(open_store(self.world.config[name]), open_store(url))
            shutil.rmtree(folder / name)
        return World(folder, {**config, **moved, "s3": {"endpoint": endpoint}})


def make_nights(folder: Path, model: Path | None) -> Nights:
    """With that encoder, or on precomputed vectors where there is none, which takes a fraction of the time."""
    world = World(folder / "world", make_config(folder / "world", model or Path()))
    rows, write = make_rows()[:300] + make_rows()[400:], write_rows
    if model is None:
        catalogue = {**world.config["catalogue"], "path": None}
        world = world.changed(catalogue=catalogue, vectors={"path": world.config["catalogue"]["path"]})
        write = write_vectors
    write(world.folder / "catalogue" / "all.parquet", rows)
    first = world.run().release
    kept = [*rows[:NUM_CHANGED], *rows[NUM_CHANGED + 5 :]]
    for number in (*range(NUM_CHANGED), -1):  # too many of the tracks for deltas, and one of the shows
        kept[number] = {**kept[number], "title": f"{kept[number]['title']} live"}
    write(world.folder / "catalogue" / "all.parquet", kept)
    reference = world.copied(folder / "reference")
    return Nights(world, first, reference.run().release, reference)


def run(world: World, expected: int = 0) -> str:
    """Runs nightly in this process; returns what it wrote to standard error."""
    with redirect_stderr(io.StringIO()) as errors:
        status = world.command("nightly")
    assert status == expected, errors.getvalue()
    return errors.getvalue()


def write_vectors(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows without description, each with a vector that follows from id and title."""
    seeds = [list(f"{row['item_id']} {row['title']}".encode()) for row in rows]
    vectors = [np.random.default_rng(seed).normal(size=DIM).astype(np.float32) for seed in seeds]
    table = pa.Table.from_pylist([{name: row[name] for name in ("item_id", "item_type", "title")} for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.append_column("vector", pa.array(list(vectors), pa.list_(pa.float32(), DIM))), path)


def copy_store(source: Store, target: Store) -> None:
    for info in source.list():
        target.put(info.key, source.get(info.key))


def expire_lease(store: Store) -> None:
    """What two minutes without a heartbeat do: the lease of a killed run is free."""
    for info in store.list("leases/"):
        if isinstance(store, LocalStore):
            long_ago = time.time() - 3600
            os.utime(store._path(info.key), (long_ago, long_ago))
        else:
            store.put(info.key, json.dumps({"owner": "killed", "is_free": True}).encode())


def content(release: Release) -> Release:
    """What is the same however and in whichever folder a release came about."""
    # The digest of the file covers the three.
    return replace(release, created_at="", writer_id="", config_fingerprint="", digest=None)
