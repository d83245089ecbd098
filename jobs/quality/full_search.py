"""Full retrieval through Ray: many queries against every shard of a release, published or just built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from cluster.fanout import fan_out
from indexing.dense.exact import exact_search, merge_top_k
from indexing.dense.shard_graph import ShardGraph
from indexing.release.manifest import FORMAT_VERSION, Collection, Shard
from indexing.release.report import CollectionReport
from indexing.release.shard import make_graph, read_rows
from indexing.store import Store
from jobs.quality.best_hits import QUERIES_PER_BLOCK, BestHits, Hits, shard_hits
from jobs.run import Run
from jobs.workspace.blobs import built_blobs
from jobs.workspace.records import BuiltShard

BLOCK_ROWS = 8192
Found = tuple[np.ndarray, np.ndarray]
"""Item ids (str objects) or labels (int64), and scores float32, each (num_queries, at most k), best first."""


@dataclass(frozen=True)
class ReleaseFiles:
    """A release, published or just built, and where its files are; plain data, so that Ray can ship it."""

    collections: Sequence[Collection]
    dim: int
    workspace: Store
    """Searched first: what was built tonight is only there."""
    store: Store
    format_version: int = FORMAT_VERSION


def built_files(run: Run, shards: Sequence[BuiltShard], reports: Mapping[str, CollectionReport]) -> ReleaseFiles:
    """What was just built, with the figures of each collection that validation found."""
    collections = tuple(
        Collection(
            name=name,
            item_types=(),
            num_items=report.num_items,
            ef_search=report.ef_search,
            shards=tuple(shard.entry for shard in shards if shard.collection == name),
        )
        for name, report in reports.items()
    )
    return ReleaseFiles(collections, shards[0].dim, run.workspace, run.store)


def search_release(files: ReleaseFiles, queries: np.ndarray, k: int, *, exact: bool = False) -> Found:
    """Item ids and scores of the k best items of each query; equal scores by item id. `find_best` with texts."""
    best = find_best(files, queries, k, exact=exact)
    return best.item_ids, best.scores


def find_best(files: ReleaseFiles, queries: np.ndarray, k: int, *, exact: bool = False) -> BestHits:
    """The k best items of each query, float32 (num_queries, dim), by the graphs at their `ef_search`, or exactly.

    Each shard is loaded once, by a task that searches all queries. Memory of a task: the shard, and 8 bytes ×
    num_queries × k (exactly: a block of scores in addition).
    """
    shards = [(shard, collection.ef_search) for collection in files.collections for shard in collection.shards]
    files_reference, queries_reference = ray.put(files), ray.put(queries)
    best = BestHits(len(queries), k)
    for _, hits in fan_out(
        lambda task: search_ids.remote(files_reference, *task, queries_reference, k, best.floor, exact),
        shards,
        what="search",
    ):
        best.add(hits)
    best.merge()
    return best


@ray.remote
def search_ids(
    files: ReleaseFiles, shard: Shard, ef: int, queries: np.ndarray, k: int, floor: np.ndarray, exact: bool
) -> Hits:
    """The hits of one shard that reach `floor`, float32 (num_queries,)."""
    where = f"shard {shard.number}"
    with built_blobs(files.workspace, files.store) as fetch:
        rows = read_rows(fetch, shard, where)
        graph = make_graph(fetch, files.dim, shard, rows, where)
    k = min(k, shard.num_items)
    if exact:
        return shard_hits([search_exactly(graph, queries, k)], floor, rows["item_id"])
    starts = range(0, len(queries), QUERIES_PER_BLOCK)
    blocks = (graph.search(queries[start : start + QUERIES_PER_BLOCK], k, ef, num_threads=1) for start in starts)
    return shard_hits(blocks, floor, rows["item_id"])


def search_exactly(graph: ShardGraph, queries: np.ndarray, k: int) -> Found:
    """Labels and scores of the k best (or all, where there are fewer) of each query, in one pass over the vectors."""
    found = None
    for block_labels, vectors in graph.blocks(BLOCK_ROWS):
        rows, scores = exact_search(vectors, queries, k)
        block = block_labels[rows], scores
        found = block if found is None else merge_top_k(*found, *block, k)
    assert found is not None
    return found
