"""Stage 3: vectors → shards, one Ray task a shard.

A shard is a range of id keys of one collection: its HNSW graph, its item ids in label order, and their display
metadata, three blobs. A graph is stored under a name derived from what it is built from, so an unchanged one is found,
not built again; where little has changed since the parent release, its graph stays and deltas are added to it.
"""

import hashlib
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from cluster.nodes import cores_of_nodes
from indexing.dense.build import build_graph
from indexing.dense.params import IndexParams
from indexing.key_ranges import key_range, num_shards
from indexing.release.codec import to_plain
from indexing.release.manifest import Release, Shard
from indexing.store import Store
from indexing.store.blobs import Blob, file_blob
from jobs.config.schema import Config
from jobs.inputs.inputs import Inputs
from jobs.progress import Bar
from jobs.run import Run
from jobs.stages.carry_over import update_shard
from jobs.stages.shard_rows import BaseDamaged, ShardRows, rows_of_shard, shard_items, shard_vectors
from jobs.workspace.artifact import Artifact
from jobs.workspace.blobs import put_blob, workspace_key
from jobs.workspace.buckets import IDS_COLUMNS
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.parquet import parquet_bytes
from jobs.workspace.records import Built, BuiltGraph, BuiltShard, Prepared

FORMAT = 3
RANGES = 2
"""How a collection's items are split into shards; shards split in another way are built again from the same graphs."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to build; plain data, so that Ray can ship it."""

    rows: ShardRows
    number: int
    params: IndexParams
    parent: Shard | None
    """The same shard of the parent release; None where it has to be built whole."""
    parent_dim: int
    compact_at: float
    num_threads: int


def build(run: Run, inputs: Inputs, prepared: Prepared) -> Built:
    """Runs the stage, or skips it when its artifact is complete; the record lists the shards with their digests.

    Shards of the parent release are carried over where that is possible; without a parent, all are built whole.
    Raises BaseDamaged where vectors of the base cannot be read.
    """
    parent = None if why_rebuild(run.config, inputs) else inputs.parent
    artifact = built_artifact(run, prepared.path, parent)
    if done := artifact.read():
        return done
    with run.stage("build", prepared.total_items) as bar:
        shards, peak = build_filled(run, inputs, prepared, parent, bar)
    built = Built(path=artifact.path, shards=shards, peak_memory_bytes=peak)
    artifact.write(built)
    return built


def build_filled(
    run: Run, inputs: Inputs, prepared: Prepared, parent: Release | None, bar: Bar
) -> tuple[tuple[BuiltShard, ...], int]:
    """(every shard, by collection and number; the largest peak memory of a worker, in bytes).

    A release has no empty shard, and the shard of an id follows from its key and the number of shards alone. So a
    collection that leaves a key range without items, as very small ones do, is built again with half as many shards.
    """
    rows_per_shard, counts = run.config.index.rows_per_shard, prepared.num_items
    totals = {name: num_shards(count, rows_per_shard) for name, count in counts.items()}
    filled: list[BuiltShard] = []
    memory: list[int] = []
    while totals:
        found: dict[str, list[BuiltShard]] = {name: [] for name in totals}
        tasks = plan_shards(run, inputs, prepared, parent, totals)
        submit = build_shard.options(num_cpus=tasks[0].num_threads).remote
        damaged: set[str] = set()
        for task, (shard, damaged_of_shard, peak) in fan_out(submit, tasks, what="build"):
            memory.append(peak)
            damaged.update(damaged_of_shard)
            if shard:
                found[task.rows.collection].append(shard)
        if damaged:
            raise BaseDamaged(damaged)
        for name, shards in found.items():
            if len(shards) == totals[name]:
                filled += shards
                bar.advance(counts[name])
        totals = {name: total // 2 for name, total in totals.items() if len(found[name]) < total}
    return tuple(sorted(filled, key=lambda shard: (shard.collection, shard.entry.number))), max(memory)


def why_rebuild(config: Config, inputs: Inputs) -> str | None:
    """Why no shard of the parent release can be carried over; None where they can."""
    parent, encoder = inputs.parent, inputs.encoder
    if parent is None:
        return "there is no release yet"
    if parent.index != config.index.params():
        return "the index parameters have changed"
    if (parent.encoder is None) != (encoder is None):
        return "vectors were precomputed and now come from an encoder, or the other way round"
    if encoder is None or parent.encoder is None:
        return None
    if parent.text_templates != config.catalogue.text:
        return "the text templates have changed"
    if (parent.encoder.digest, parent.encoder.max_tokens, parent.encoder.dtype, parent.encoder.dim) != (
        encoder.digest,
        config.encoder.max_tokens,
        config.encoder.dtype,
        config.encoder.dim or parent.encoder.dim,
    ):
        return "the encoder has changed"
    return None


def built_artifact(run: Run, prepared_path: str, parent: Release | None) -> Artifact[Built]:
    index = run.config.index
    carried = [to_plain(collection.shards) for collection in parent.collections] if parent else None
    name = fingerprint(FORMAT, RANGES, prepared_path, index.rows_per_shard, index.params(), index.compact_at, carried)
    return Artifact(run.workspace, f"builds/{name}", Built)


def plan_shards(
    run: Run, inputs: Inputs, prepared: Prepared, parent: Release | None, totals: dict[str, int]
) -> list[ShardTask]:
    """The shards of the collections in `totals`, which has the number of shards of each."""
    index = run.config.index
    carried = shards_to_carry(parent, totals)
    num_threads = threads_of_a_shard(sum(totals.values()))
    return [
        ShardTask(
            rows=rows_of_shard(run, inputs, prepared, name, key_range(number, total)),
            number=number,
            params=index.params(),
            parent=carried.get((name, number)),
            parent_dim=parent.dim if parent else 0,
            compact_at=index.compact_at,
            num_threads=num_threads,
        )
        for name, total in totals.items()
        for number in range(total)
    ]


def threads_of_a_shard(num_shards: int) -> int:
    """One, or more where the cluster has more cores than there are shards; no more than a node has."""
    cores = cores_of_nodes()
    return max(1, min(max(cores, default=1), sum(cores) // num_shards))


def shards_to_carry(parent: Release | None, totals: dict[str, int]) -> dict[tuple[str, int], Shard]:
    """(collection, number) → the parent's shard, where the collection has as many shards (`totals`) as it had."""
    return {
        (collection.name, shard.number): shard
        for collection in (parent.collections if parent else ())
        for shard in collection.shards
        if len(collection.shards) == totals.get(collection.name)
    }


def why_other_shards(parent: Release | None, totals: dict[str, int]) -> str | None:
    """Which collections have more or fewer shards than in the parent release: none of theirs can be carried over."""
    before = {collection.name: len(collection.shards) for collection in parent.collections} if parent else {}
    others = [name for name, total in totals.items() if before.get(name) != total]
    texts = [f"{name} has {totals[name]} shards, previously {before.get(name, 0)}" for name in others]
    return "; ".join(texts) or None


@ray.remote
def build_shard(task: ShardTask) -> tuple[BuiltShard | None, set[str], int]:
    """The shard, None where it has no items; shards of the base that are damaged, so that it could not be built; the
    peak memory of this process in bytes.
    """
    items = shard_items(task.rows)
    try:
        shard = (carry_over(task, items) or build_whole(task, items)) if items.num_rows else None
    except BaseDamaged as error:
        return None, error.shards, peak_memory_bytes()
    return shard, set(), peak_memory_bytes()


def carry_over(task: ShardTask, items: pa.Table) -> BuiltShard | None:
    """The parent's graph with deltas and tombstones; None where there is none, or too much has changed."""
    if task.parent is None:
        return None
    entry = update_shard(
        task.rows.workspace,
        task.rows.store,
        task.parent,
        items.select(["item_id", "fingerprint"]),
        items.drop_columns(IDS_COLUMNS),
        partial(shard_vectors, task.rows),
        task.compact_at,
    )
    return (
        BuiltShard(collection=task.rows.collection, dim=task.parent_dim, entry=entry, num_indexed=0) if entry else None
    )


def build_whole(task: ShardTask, items: pa.Table) -> BuiltShard:
    """Builds the graph, or takes one that is already built."""
    workspace, ids = task.rows.workspace, items.select(["item_id", "fingerprint"])
    artifact = Artifact(workspace, f"shards/{fingerprint(FORMAT, ids_digest(ids), asdict(task.params))}", BuiltGraph)
    graph, num_indexed = artifact.read(), 0
    if graph is None or workspace.head(workspace_key(graph.index)) is None:
        vectors, num_indexed = shard_vectors(task.rows, items), items.num_rows
        graph = BuiltGraph(dim=vectors.shape[1], index=put_graph(workspace, vectors, task.params, task.num_threads))
        artifact.write(graph)
    entry = Shard(
        number=task.number,
        num_items=items.num_rows,
        index=graph.index,
        items=put_blob(workspace, parquet_bytes(ids)),
        metadata=put_blob(workspace, parquet_bytes(items.drop_columns(IDS_COLUMNS))),
    )
    return BuiltShard(collection=task.rows.collection, dim=graph.dim, entry=entry, num_indexed=num_indexed)


def ids_digest(ids: pa.Table) -> str:
    digest = hashlib.sha256()
    for item_id, row_fingerprint in zip(ids["item_id"].to_pylist(), ids["fingerprint"].to_pylist(), strict=True):
        digest.update(b"%d:%s%s" % (len(item_id.encode()), item_id.encode(), row_fingerprint))
    return digest.hexdigest()


def put_graph(workspace: Store, vectors: np.ndarray, params: IndexParams, num_threads: int) -> Blob:
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "index.hnsw")
        build_graph(vectors, params, path, num_threads)
        blob = file_blob(path)
        workspace.upload(workspace_key(blob), path, sha256=blob.sha256)
        return blob
