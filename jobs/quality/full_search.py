"""Full retrieval through Ray: many queries against every shard of a release, published or just built."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from cluster.fanout import fan_out
from indexing.dense.exact import exact_search, merge_top_k
from indexing.dense.hnsw import Graph
from indexing.ranks import text_ranks
from indexing.release.manifest import Collection, Shard
from indexing.release.report import CollectionReport
from indexing.release.shard import open_graph, read_rows
from indexing.store import Store
from indexing.store.blobs import Blob, Fetch
from indexing.store.cache import downloads
from jobs.run import Run
from jobs.workspace.blobs import local_blobs, workspace_key
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
    """Searched first: what was built tonight is only there, and what was carried over is there too."""
    store: Store

    @contextmanager
    def fetching(self) -> Iterator[Fetch]:
        with local_blobs(self.workspace) as fetch_built, downloads(self.store) as fetch_published:

            def fetch(blob: Blob) -> Path:
                if self.workspace.head(workspace_key(blob)) is not None:
                    return fetch_built(blob)
                return fetch_published(blob)

            yield fetch


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
    """The k best items of each query, float32 (num_queries, dim), by the graphs at their `ef_search`, or exactly.

    Equal scores: by item id. Memory of a task: one shard and a block of scores.
    """
    shards = [(shard, collection.ef_search) for collection in files.collections for shard in collection.shards]
    reference = ray.put(queries)
    ids, scores = np.empty((len(queries), 0), object), np.empty((len(queries), 0), np.float32)
    for _, (more_ids, more_scores) in fan_out(
        lambda task: search_ids.remote(files, *task, reference, k, exact), shards, what="search"
    ):
        ids, scores = np.concatenate([ids, more_ids], axis=1), np.concatenate([scores, more_scores], axis=1)
        order = np.lexsort((text_ranks(ids), -scores), axis=1)[:, :k]
        ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return ids, scores


@ray.remote
def search_ids(files: ReleaseFiles, shard: Shard, ef: int, queries: np.ndarray, k: int, exact: bool) -> Found:
    """The hits of one shard."""
    where = f"shard {shard.number}"
    with files.fetching() as fetch:
        graph, rows = open_graph(fetch, files.dim, shard, where), read_rows(fetch, shard, where)
    k = min(k, shard.num_items)
    labels, scores = search_exactly(graph, queries, k) if exact else graph.search(queries, k, ef, num_threads=1)
    return rows["item_id"].take(labels.ravel()).to_numpy().reshape(labels.shape), scores


def search_exactly(graph: Graph, queries: np.ndarray, k: int) -> Found:
    """Labels and scores of the k best (or all, where there are fewer) of each query, in one pass over the vectors."""
    found = None
    for block_labels, vectors in graph.blocks(BLOCK_ROWS):
        rows, scores = exact_search(vectors, queries, k)
        block = block_labels[rows], scores
        found = block if found is None else merge_top_k(*found, *block, k)
    assert found is not None
    return found
