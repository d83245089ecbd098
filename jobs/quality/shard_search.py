"""Built shards searched by their graphs with several ef, and exactly: what recall is measured from.

Memory is bounded: a task holds one shard and a block of scores; the driver holds the ten best of each query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.dense.exact import merge_top_k
from indexing.dense.params import K
from indexing.release.shard import open_graph, read_metadata
from indexing.store import Store
from jobs.inputs.rows import RowRules
from jobs.progress import Bar
from jobs.quality.full_search import Found, search_exactly
from jobs.quality.recall import EF_GRID, found_by_graph, recall_by_score
from jobs.quality.recall_loss import NUM_ITEMS, NUM_NEAR, Near, merge_near, texts_of
from jobs.run import Run
from jobs.workspace.blobs import built_blobs
from jobs.workspace.records import BuiltShard


@dataclass(frozen=True)
class Truth:
    """The true neighbours of each query, best first."""

    rows: np.ndarray
    """int64 (num_queries, at most K): row in the collection, counted over its shards."""
    scores: np.ndarray
    """float32, of the same shape."""
    found_by: np.ndarray
    """uint16, of the same shape: bit i is set where the neighbour's own shard finds it with `EF_GRID[i]`."""

    def merge(self, other: "Truth") -> "Truth":
        """The K best of both; equal scores: lower row first."""
        rows, scores, found_by = (
            np.concatenate([getattr(self, name), getattr(other, name)], axis=1)
            for name in ("rows", "scores", "found_by")
        )
        order = np.lexsort((rows, -scores), axis=1)[:, :K]
        return Truth(*(np.take_along_axis(values, order, axis=1) for values in (rows, scores, found_by)))


@dataclass(frozen=True)
class Hits:
    """What one shard finds, or all shards of a collection together."""

    truth: Truth
    by_ef: dict[int, Found]
    """ef → rows in the collection and scores, each (num_queries, at most K), as the graphs find them."""
    recall_of_shard: dict[str, dict[int, float]]
    """Shard → ef → recall@10 of the shard by itself."""
    near: Near | None
    """The texts nearest to a few of the queries; None where vectors came precomputed."""
    peak_memory_bytes: int

    def merge(self, other: "Hits") -> "Hits":
        near = merge_near(self.near, other.near) if self.near and other.near else None
        return Hits(
            truth=self.truth.merge(other.truth),
            by_ef={ef: merge_top_k(*found, *other.by_ef[ef], K) for ef, found in self.by_ef.items()},
            recall_of_shard=self.recall_of_shard | other.recall_of_shard,
            near=near,
            peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes),
        )


def search_shards(
    run: Run,
    rules: RowRules,
    shards: Sequence[BuiltShard],
    query_sets: Mapping[str, Mapping[str, np.ndarray]],
    efs: Sequence[int],
    bar: Bar,
) -> dict[str, Hits]:
    """By collection: what all its shards together find for its query sets, one set after the other."""
    queries = {name: ray.put(np.concatenate(list(sets.values()))) for name, sets in query_sets.items()}
    first_rows = number_rows(shards)
    merged: dict[str, Hits] = {}
    for shard, hits in fan_out(
        lambda shard: search_shard.remote(
            run.workspace, run.store, rules, shard, first_rows[str(shard)], queries[shard.collection], efs
        ),
        shards,
        what="validate",
    ):
        bar.advance(shard.entry.num_items)
        name = shard.collection
        merged[name] = merged[name].merge(hits) if name in merged else hits
    return merged


def number_rows(shards: Sequence[BuiltShard]) -> dict[str, int]:
    """Shard → its first row in the collection; `shards` are in order of their numbers."""
    first_rows: dict[str, int] = {}
    for name in {shard.collection for shard in shards}:
        of_collection = [shard for shard in shards if shard.collection == name]
        starts = accumulate((shard.entry.num_rows for shard in of_collection), initial=0)
        first_rows |= {str(shard): start for shard, start in zip(of_collection, starts, strict=False)}
    return first_rows


@ray.remote
def search_shard(
    workspace: Store,
    store: Store,
    rules: RowRules,
    shard: BuiltShard,
    first_row: int,
    queries: np.ndarray,
    efs: Sequence[int],
) -> Hits:
    with built_blobs(workspace, store) as fetch:
        graph = open_graph(fetch, shard.dim, shard.entry, str(shard))
        labels, scores = search_exactly(graph, queries, NUM_NEAR)
        near = None
        if rules.text is not None:
            metadata = read_metadata(fetch, shard.entry, str(shard))
            near = texts_of(rules, metadata, labels[:NUM_ITEMS]), scores[:NUM_ITEMS]
    k = min(K, shard.entry.num_items)
    labels, scores = labels[:, :k], scores[:, :k]
    found_by = np.zeros(labels.shape, np.uint16)
    by_ef, recalls = {}, {}
    for ef in efs:
        found_labels, found_scores = graph.search(queries, k, ef, num_threads=1)
        found_by |= found_by_graph(found_scores, scores).astype(np.uint16) << np.uint16(EF_GRID.index(ef))
        by_ef[ef] = found_labels + first_row, found_scores
        recalls[ef] = float(recall_by_score(found_scores, scores).mean())
    return Hits(Truth(labels + first_row, scores, found_by), by_ef, {str(shard): recalls}, near, peak_memory_bytes())
