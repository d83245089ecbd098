"""Each built shard by itself: its ids, its vectors, and whether its graph loads. Samples items to measure recall on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.dense.load_check import check_loads
from indexing.release.report import Gate
from indexing.release.shard import live_vectors, read_live_rows, read_metadata
from indexing.store import Store
from indexing.vectors import count_bad_vectors
from jobs.progress import Bar
from jobs.quality.gates import equal
from jobs.quality.slices import slice_rows
from jobs.run import Run
from jobs.workspace.blobs import local_blobs
from jobs.workspace.records import BuiltShard

TRAITS = {"item_type": pa.string(), "language": pa.string(), "popularity": pa.float64()}
"""Columns by which recall is reported separately."""


@dataclass(frozen=True)
class Sample:
    """Items of one collection that recall is measured on."""

    vectors: np.ndarray
    """float32 (num_samples, dim)."""
    slices: dict[str, np.ndarray]
    """Name → bool (num_samples,): see `slice_rows`."""


@dataclass(frozen=True)
class Inspection:
    samples: dict[str, Sample]
    """By collection."""
    gates: list[Gate]
    peak_memory_bytes: int


@dataclass(frozen=True)
class ShardInspection:
    """What one task found."""

    num_repeated_ids: int
    num_not_finite: int
    num_not_unit: int
    vectors: np.ndarray
    """float32 (num_samples, dim), of sampled items."""
    traits: pa.Table
    """`TRAITS` of the same items."""
    peak_memory_bytes: int


def inspect_shards(run: Run, shards: Sequence[BuiltShard], bar: Bar) -> Inspection:
    """Raises ValidationFailed for a graph that crashes hnswlib."""
    totals: Counter[str] = Counter()
    for shard in shards:
        totals[shard.collection] += shard.entry.num_items

    def submit(shard: BuiltShard) -> ray.ObjectRef[ShardInspection]:
        share = run.config.validation.num_samples * shard.entry.num_items
        return inspect_shard.remote(run.workspace, shard, -(-share // totals[shard.collection]))

    results: dict[str, ShardInspection] = {}
    for shard, found in fan_out(submit, shards, what="validate"):
        bar.advance(shard.entry.num_items)
        results[str(shard)] = found
    # In the order of the shards, not of completion: the report is a blob, and equal runs must give the same bytes.
    by_collection = {name: [results[str(shard)] for shard in shards if shard.collection == name] for name in totals}
    return Inspection(
        samples={name: make_sample(found) for name, found in by_collection.items()},
        gates=[gate for shard in shards for gate in shard_gates(shard, results[str(shard)])],
        peak_memory_bytes=max(found.peak_memory_bytes for found in results.values()),
    )


def make_sample(found: Sequence[ShardInspection]) -> Sample:
    traits = pa.concat_tables([each.traits for each in found])
    slices = slice_rows(
        traits["item_type"].to_pylist(), traits["language"].to_pylist(), traits["popularity"].to_numpy()
    )
    return Sample(np.concatenate([each.vectors for each in found]), slices)


def shard_gates(shard: BuiltShard, found: ShardInspection) -> list[Gate]:
    return [
        equal("rows without a distinct id", str(shard), found.num_repeated_ids, 0),
        equal("vectors with NaN or infinity", str(shard), found.num_not_finite, 0),
        equal("vectors not of unit norm", str(shard), found.num_not_unit, 0),
    ]


@ray.remote
def inspect_shard(workspace: Store, shard: BuiltShard, num_samples: int) -> ShardInspection:
    """Reads every id and vector of the shard; samples vectors evenly: label order is by hash, so that is random."""
    entry = shard.entry
    with local_blobs(workspace) as fetch:
        num_ids = pc.count_distinct(read_live_rows(fetch, entry, str(shard))["item_id"]).as_py()
        metadata = read_metadata(fetch, entry, str(shard))
        check_loads(fetch(entry.index), shard.dim, entry.num_base_rows, str(shard))
        bad, labels, samples = np.zeros(2, dtype=np.int64), [], []
        rows = np.linspace(0, entry.num_items - 1, min(num_samples, entry.num_items)).astype(np.int64)
        first = 0
        for block, vectors in live_vectors(fetch, shard.dim, entry, str(shard)):
            bad += count_bad_vectors(vectors)
            wanted = rows[(first <= rows) & (rows < first + len(block))] - first
            labels.append(block[wanted])
            samples.append(vectors[wanted])
            first += len(block)
    return ShardInspection(
        num_repeated_ids=entry.num_items - num_ids,
        num_not_finite=int(bad[0]),
        num_not_unit=int(bad[1]),
        vectors=np.concatenate(samples),
        traits=metadata.select(list(TRAITS)).take(np.concatenate(labels)).cast(pa.schema(list(TRAITS.items()))),
        peak_memory_bytes=peak_memory_bytes(),
    )
