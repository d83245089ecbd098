"""Stage 3: vectors → shards, one Ray task a shard.

A shard is a range of id keys of one collection: its HNSW graph, its item ids in label order, and their display
metadata, three blobs. A graph is stored under a name derived from what it is built from, so an unchanged one is found,
not built again; where little has changed since the parent release, its graph stays and deltas are added to it.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from cluster.nodes import cores_of_nodes
from indexing.dense.build import build_graph
from indexing.dense.params import IndexParams
from indexing.dense.shard_graph import first_rows, node_numbers
from indexing.key_ranges import KeyRange, num_shards, shard_range
from indexing.release.codec import to_plain
from indexing.release.manifest import Release, Shard
from indexing.store.blobs import file_blob
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

FORMAT = 4
RANGES = 3
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
    collection that leaves a shard without items, as very small ones do, is built again with half as many shards.
    """
    index, counts, before = run.config.index, prepared.num_items, shards_before(parent)
    totals = {name: num_shards(count, index.rows_per_shard, before.get(name)) for name, count in counts.items()}
    filled: list[tuple[ShardTask, BuiltShard]] = []
    peak = 0
    while totals:
        tasks = plan_shards(run, inputs, prepared, parent, totals)
        found, peak_of_round = build_shards(tasks)
        peak = max(peak, peak_of_round)
        num_found = Counter(task.rows.collection for task, _ in found)
        full = {name for name, total in totals.items() if num_found[name] == total}
        filled += [(task, shard) for task, shard in found if task.rows.collection in full]
        bar.advance(sum(counts[name] for name in full))
        totals = {name: total // 2 for name, total in totals.items() if name not in full}
    worn = worn_shards(filled, index.compact_at, index.compact_budget)
    num_threads = threads_of_a_shard(max(1, len(worn)))
    whole, peak_of_round = build_shards([replace(task, parent=None, num_threads=num_threads) for task in worn])
    shards = {str(shard): shard for _, shard in [*filled, *whole]}
    by_name = sorted(shards.values(), key=lambda shard: (shard.collection, shard.entry.number))
    return tuple(by_name), max(peak, peak_of_round)


def build_shards(tasks: Sequence[ShardTask]) -> tuple[list[tuple[ShardTask, BuiltShard]], int]:
    """(tasks with their shards, those without items left out; the largest peak memory). Raises BaseDamaged."""
    found, damaged, peaks = [], set[str](), [0]
    if tasks:
        submit = build_shard.options(num_cpus=tasks[0].num_threads).remote
        for task, (shard, damaged_of_shard, peak) in fan_out(submit, tasks, what="build"):
            peaks.append(peak)
            damaged.update(damaged_of_shard)
            if shard:
                found.append((task, shard))
    if damaged:
        raise BaseDamaged(damaged)
    return found, max(peaks)


def worn_shards(
    built: Sequence[tuple[ShardTask, BuiltShard]], compact_at: float, compact_budget: float
) -> list[ShardTask]:
    """Shards that are rebuilt before they must be, so that they do not all have to be in one night; worst first.

    Only those that have used up half of `compact_at`, of `compact_budget` of all items at most.
    """
    left = compact_budget * sum(shard.entry.num_items for _, shard in built)
    worn = []
    for task, shard in sorted(built, key=lambda one: (-one[1].entry.change_share, str(one[1]))):
        if shard.entry.change_share > compact_at / 2 and shard.entry.num_items <= left:
            worn.append(task)
            left -= shard.entry.num_items
    return worn


def why_rebuild(config: Config, inputs: Inputs) -> str | None:
    """Why no shard of the parent release can be carried over; None where they can."""
    parent, encoder = inputs.parent, inputs.encoder
    if parent is None:
        return "there is no release yet"
    if parent.format_version < 2:
        return "its release file has format version 1"
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
    budget = (index.compact_at, index.compact_budget)
    carried = [to_plain(collection.shards) for collection in parent.collections] if parent else None
    name = fingerprint(FORMAT, RANGES, prepared_path, index.rows_per_shard, index.params(), *budget, carried)
    return Artifact(run.workspace, f"builds/{name}", Built)


def plan_shards(
    run: Run, inputs: Inputs, prepared: Prepared, parent: Release | None, totals: dict[str, int]
) -> list[ShardTask]:
    """The shards of the collections in `totals`, which has the number of shards of each."""
    index = run.config.index
    carried = shards_to_carry(parent)
    num_threads = threads_of_a_shard(sum(totals.values()))
    return [
        ShardTask(
            rows=rows_of_shard(run, inputs, prepared, name, shard_range(number, total)),
            number=number,
            params=index.params(),
            parent=carried.get((name, shard_range(number, total))),
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


def shards_before(parent: Release | None) -> dict[str, int]:
    """Collection → its shards in the parent release."""
    return {collection.name: len(collection.shards) for collection in parent.collections} if parent else {}


def shards_to_carry(parent: Release | None) -> dict[tuple[str, KeyRange], Shard]:
    """(collection, its keys) → the parent's shard."""
    if parent is None:
        return {}
    return {
        (collection.name, parent.keys_of(collection, shard)): shard
        for collection in parent.collections
        for shard in collection.shards
    }


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
        replace(task.parent, number=task.number),
        items.select(["item_id", "fingerprint"]),
        items.drop_columns(IDS_COLUMNS),
        partial(put_graph, task),
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
        graph, num_indexed = put_graph(task, items), items.num_rows
        artifact.write(graph)
    entry = Shard(
        number=task.number,
        num_items=items.num_rows,
        index=graph.index,
        items=put_blob(workspace, parquet_bytes(ids)),
        metadata=put_blob(workspace, parquet_bytes(items.drop_columns(IDS_COLUMNS))),
        num_nodes=graph.num_nodes,
    )
    return BuiltShard(
        collection=task.rows.collection, dim=graph.dim, entry=entry, num_indexed=num_indexed, graph=artifact.path
    )


def ids_digest(ids: pa.Table) -> str:
    digest = hashlib.sha256()
    for item_id, row_fingerprint in zip(ids["item_id"].to_pylist(), ids["fingerprint"].to_pylist(), strict=True):
        digest.update(b"%d:%s%s" % (len(item_id.encode()), item_id.encode(), row_fingerprint))
    return digest.hexdigest()


def put_graph(task: ShardTask, items: pa.Table) -> BuiltGraph:
    """The graph over the vectors of `items` (item_id, fingerprint …), a node for those of equal fingerprint."""
    first = first_rows(node_numbers(items["fingerprint"].combine_chunks()))
    workspace, vectors = task.rows.workspace, shard_vectors(task.rows, items.take(first))
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "index.hnsw")
        build_graph(vectors, task.params, path, task.num_threads)
        blob = file_blob(path)
        workspace.upload(workspace_key(blob), path, sha256=blob.sha256)
    num_nodes = len(first) if len(first) < items.num_rows else None
    return BuiltGraph(dim=vectors.shape[1], index=blob, num_nodes=num_nodes)
