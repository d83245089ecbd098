"""Each built shard by itself: its ids, its vectors, and whether its graph loads. Samples items to measure recall on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.dense.load_check import check_loads
from indexing.release.report import Gate
from indexing.release.shard import BLOCK_ROWS, open_graph, parts_of, read_live_rows, read_metadata
from indexing.store import Store
from indexing.vectors import count_bad_vectors
from jobs.progress import Bar
from jobs.quality.gates import equal
from jobs.quality.sample import Drawn, Sample, draw, make_sample, merge_drawn, read_traits
from jobs.run import Run
from jobs.workspace.blobs import built_blobs
from jobs.workspace.records import BuiltShard


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
    drawn: Drawn
    peak_memory_bytes: int


def inspect_shards(run: Run, shards: Sequence[BuiltShard], bar: Bar) -> Inspection:
    """Raises ValidationFailed for a graph that crashes hnswlib."""
    num_samples = run.config.validation.num_samples
    drawn: dict[str, Drawn] = {}
    gates: dict[str, list[Gate]] = {}
    peak = 0
    for shard, found in fan_out(
        lambda shard: inspect_shard.remote(run.workspace, run.store, shard, num_samples), shards, what="validate"
    ):
        bar.advance(shard.entry.num_items)
        name = shard.collection
        drawn[name] = merge_drawn(drawn[name], found.drawn, num_samples) if name in drawn else found.drawn
        gates[str(shard)] = shard_gates(shard, found)
        peak = max(peak, found.peak_memory_bytes)
    return Inspection(
        samples={name: make_sample(found, num_samples) for name, found in drawn.items()},
        # In the shards' order, whichever was done first: the report is a blob, so equal runs give equal ones.
        gates=[gate for shard in shards for gate in gates[str(shard)]],
        peak_memory_bytes=peak,
    )


def shard_gates(shard: BuiltShard, found: ShardInspection) -> list[Gate]:
    return [
        equal("rows without a distinct id", str(shard), found.num_repeated_ids, 0),
        equal("vectors with NaN or infinity", str(shard), found.num_not_finite, 0),
        equal("vectors not of unit norm", str(shard), found.num_not_unit, 0),
    ]


@ray.remote
def inspect_shard(workspace: Store, store: Store, shard: BuiltShard, num_samples: int) -> ShardInspection:
    """Reads every id and vector of the shard, block by block, and draws a sample."""
    entry = shard.entry
    with built_blobs(workspace, store) as fetch:
        num_ids = pc.count_distinct(read_live_rows(fetch, entry, str(shard))["item_id"]).as_py()
        traits = read_traits(read_metadata(fetch, entry, str(shard)))
        for part, num_rows in parts_of(entry):
            assert part.index is not None
            check_loads(fetch(part.index), shard.dim, part.num_nodes or num_rows, str(shard))
        bad, drawn = np.zeros(2, dtype=np.int64), None
        for labels, vectors in open_graph(fetch, shard.dim, entry, str(shard)).blocks(BLOCK_ROWS):
            bad += count_bad_vectors(vectors)
            of_block = draw(vectors, traits.take(labels), num_samples)
            drawn = merge_drawn(drawn, of_block, num_samples) if drawn else of_block
    assert drawn is not None
    return ShardInspection(
        num_repeated_ids=entry.num_items - num_ids,
        num_not_finite=int(bad[0]),
        num_not_unit=int(bad[1]),
        drawn=drawn,
        peak_memory_bytes=peak_memory_bytes(),
    )
