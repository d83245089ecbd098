"""Stage 3: vectors → shards, one Ray task and one thread a shard.

A shard is a range of id keys of one collection: its HNSW graph, its item ids in label order, and their display
metadata, three blobs. Its folder's name is a fingerprint of ids, vectors and index parameters, so an unchanged shard is
found, not built again.
"""

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.errors import DamagedError, DataError
from indexing.hnsw import IndexParams, build_index
from indexing.sharding import KeyRange, key_range, num_shards

from .config import Config, fingerprint
from .prepare import read_parts
from .progress import Progress
from .vectors import vectors_of
from .workspace import Artifact, parquet_bytes, read_run

FORMAT = 1
INTERNAL_COLUMNS = ["collection", "id_key", "item_id", "fingerprint", "source_part", "source_row"]


@dataclass(frozen=True)
class ShardTask:
    """One shard to build; plain data, so that Ray can ship it."""

    prepared: Artifact
    num_parts: int
    duplicate_runs: tuple[int, ...]
    chunks: tuple[str, ...]
    collection: str
    number: int
    keys: KeyRange
    params: IndexParams


def build(config: Config, prepared: Artifact, encoded: Artifact, progress: Progress) -> Artifact:
    """Runs the stage, or skips it when its artifact is complete; the artifact lists the shards with their digests."""
    artifact = built_artifact(config, prepared)
    if artifact.read_marker():
        return artifact
    tasks = plan_shards(config, prepared, encoded)
    shards: list[dict[str, Any]] = []
    with progress.stage("build", sum(prepared.require_marker()["num_items"].values())) as bar:
        for _, shard in fan_out(lambda task: build_shard.remote(task), tasks, what="build"):
            shards.append(shard)
            bar.advance(shard["num_items"])
    peak_memory = max(shard.pop("peak_memory_bytes") for shard in shards)
    artifact.write_marker({"shards": without_empty(shards), "peak_memory_bytes": peak_memory})
    return artifact


def without_empty(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shards by collection and number, numbered anew where a small collection left some without items."""
    ordered = sorted(
        (shard for shard in shards if shard["num_items"]), key=lambda shard: (shard["collection"], shard["number"])
    )
    groups = groupby(ordered, key=lambda shard: shard["collection"])
    return [{**shard, "number": number} for _, group in groups for number, shard in enumerate(group)]


def built_artifact(config: Config, prepared: Artifact) -> Artifact:
    name = fingerprint(FORMAT, prepared.path, config.index.rows_per_shard, config.index.params())
    return Artifact(prepared.store, f"builds/{name}")


def plan_shards(config: Config, prepared: Artifact, encoded: Artifact) -> list[ShardTask]:
    """The shards of every collection, by the number of its items."""
    rows, vectors = prepared.require_marker(), encoded.require_marker()
    totals = {name: num_shards(count, config.index.rows_per_shard) for name, count in rows["num_items"].items()}
    return [
        ShardTask(
            prepared=prepared,
            num_parts=rows["num_parts"],
            duplicate_runs=tuple(rows["duplicate_runs"]),
            chunks=tuple(vectors["chunks"]),
            collection=name,
            number=number,
            keys=key_range(number, total),
            params=config.index.params(),
        )
        for name, total in totals.items()
        for number in range(total)
    ]


@ray.remote
def build_shard(task: ShardTask) -> dict[str, Any]:
    """Builds the shard, or finds it built; returns its counts, digests and keys in the workspace."""
    items = shard_items(task)
    summary = {"collection": task.collection, "number": task.number, "num_items": items.num_rows}
    if not items.num_rows:
        return {**summary, "peak_memory_bytes": peak_memory_bytes()}
    ids = items.select(["item_id", "fingerprint"])
    name = fingerprint(FORMAT, ids_digest(ids), asdict(task.params))
    artifact = Artifact(task.prepared.store, f"shards/{name}")
    graph = artifact.read_marker()
    is_reused = graph is not None
    if graph is None:
        vectors = shard_vectors(task, items)
        graph = {"dim": vectors.shape[1], "index": put_graph(artifact, vectors, task.params)}
        graph["items"] = put_blob(artifact, "items", parquet_bytes(ids))
        artifact.write_marker(graph)
    metadata = put_blob(artifact, "metadata", parquet_bytes(items.drop_columns(INTERNAL_COLUMNS)))
    return {**summary, **graph, "metadata": metadata, "is_reused": is_reused, "peak_memory_bytes": peak_memory_bytes()}


def shard_items(task: ShardTask) -> pa.Table:
    """The shard's items in label order (id key, then id), without rows whose id an earlier row has."""
    rows = read_parts(task.prepared, "items", task.num_parts, "id_key", task.keys, collection=task.collection)
    order = [("id_key", "ascending"), ("item_id", "ascending")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=order))
    for number in task.duplicate_runs:
        key = task.prepared.key(f"duplicates-{number:05d}.parquet")
        duplicates = read_run(task.prepared.store, key, "id_key", task.keys)
        rows = rows.filter(pc.invert(pc.is_in(_sources(rows), value_set=_sources(duplicates))))
    return rows.combine_chunks()


def _sources(rows: pa.Table) -> pa.Array:
    """int64 (num_rows,): part and row in one number."""
    return pc.add(pc.shift_left(rows["source_part"].cast(pa.int64()), 32), rows["source_row"]).combine_chunks()


def ids_digest(ids: pa.Table) -> str:
    digest = hashlib.sha256()
    for item_id, row_fingerprint in zip(ids["item_id"].to_pylist(), ids["fingerprint"].to_pylist(), strict=True):
        digest.update(b"%d:%s%s" % (len(item_id.encode()), item_id.encode(), row_fingerprint))
    return digest.hexdigest()


def shard_vectors(task: ShardTask, items: pa.Table) -> np.ndarray:
    """float32 (num_items, dim), unit norm, in label order; read chunk by chunk into one array.

    Raises DamagedError where an item has no vector, DataError where chunks differ in dimension.
    """
    wanted = pc.binary_join_element_wise(
        items["fingerprint"].cast(pa.binary()), items["item_id"].cast(pa.binary()), b""
    )
    vectors: np.ndarray | None = None
    found = np.zeros(items.num_rows, dtype=bool)
    for key in task.chunks:
        rows = read_run(task.prepared.store, key, "id_key", task.keys)
        if not rows.num_rows:
            continue
        pairs = pc.binary_join_element_wise(
            rows["fingerprint"].cast(pa.binary()), rows["item_id"].cast(pa.binary()), b""
        )
        labels = pc.index_in(pairs, value_set=wanted.combine_chunks())
        is_wanted = pc.is_valid(labels)
        values = vectors_of(rows.filter(is_wanted))
        if vectors is None:
            vectors = np.empty((items.num_rows, values.shape[1]), np.float32)
        if values.shape[1] != vectors.shape[1]:
            raise DataError(f"{key}: expected vectors of {vectors.shape[1]} dimensions, got {values.shape[1]}")
        positions = labels.drop_null().to_numpy()
        vectors[positions], found[positions] = values, True
    if vectors is None or not found.all():
        raise DamagedError(
            f"collection {task.collection}: {np.count_nonzero(~found)} of {len(found)} items have no vector in the "
            f"workspace; delete {task.prepared.store.url}/{task.prepared.path} and run again"
        )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def put_graph(artifact: Artifact, vectors: np.ndarray, params: IndexParams) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "index.hnsw")
        build_index(vectors, params, path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        key = artifact.key(f"{sha256}.hnsw")
        artifact.store.upload(key, path, sha256=sha256)
        return {"sha256": sha256, "size_bytes": path.stat().st_size, "key": key}


def put_blob(artifact: Artifact, kind: str, data: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(data).hexdigest()
    key = artifact.key(f"{kind}-{sha256}.parquet")
    if artifact.store.head(key) is None:
        artifact.store.put(key, data)
    return {"sha256": sha256, "size_bytes": len(data), "key": key}
