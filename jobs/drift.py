"""The gates that compare with the parent release: how far vectors have moved, and how many hits have stayed.

They read every shard of both releases, so they are measured only where a limit is set.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray

from cluster.fanout import fan_out
from indexing.cache import BlobCache, default_cache_folder
from indexing.release.diff import Drift, Range, RangeDiff, diff_range, plan_ranges, sum_drift
from indexing.release.manifest import Blob, Collection, Release, Shard
from indexing.release.shard import Fetch, open_graph, read_rows
from indexing.search import load_release_encoder
from indexing.store import Store
from indexing.validation import K

from .changes import download_into
from .workspace import local_blobs, workspace_key


@dataclass(frozen=True)
class Side:
    """One of the two releases; plain data, so that Ray can ship it."""

    collections: Sequence[Collection]
    dim: int
    workspace: Store
    """Looked into first: what was built tonight or carried on is there alone, or there too."""
    store: Store

    @contextmanager
    def fetching(self) -> Iterator[Fetch]:
        with local_blobs(self.workspace) as fetch_built, tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:

            def fetch(blob: Blob) -> Path:
                if self.workspace.head(workspace_key(blob)) is not None:
                    return fetch_built(blob)
                return download_into(Path(folder), self.store, blob)

            yield fetch


def measure_drift(before: Side, after: Side) -> Drift | None:
    """How far the vectors of the items have moved that are in both; None where they can't be compared."""
    ranges = plan_ranges(before.collections, after.collections)
    found = fan_out(lambda each: compare_range.remote(each, before, after), ranges, what="drift")
    return sum_drift(part for _, part in found)


@ray.remote
def compare_range(each: Range, before: Side, after: Side) -> RangeDiff:
    with after.fetching() as fetch:
        return diff_range(each, before.dim, after.dim, fetch)


def measure_overlap(before: Side, after: Side, queries_before: np.ndarray, queries_after: np.ndarray) -> float:
    """The mean share of the ten best hits of all collections that both find; queries are float32 (num_queries, dim)."""
    hits = [best_ids(before, queries_before), best_ids(after, queries_after)]
    return float(np.mean([len(set(old) & set(new)) / len(new) for old, new in zip(*hits, strict=True)]))


def encode_as_before(parent: Release, store: Store, texts: list[str]) -> np.ndarray:
    """float32 (num_texts, dim) by the parent's own encoder."""
    assert parent.encoder is not None
    return load_release_encoder(store, BlobCache(default_cache_folder()), parent.encoder).encode(texts, kind="query")


def best_ids(side: Side, queries: np.ndarray) -> np.ndarray:
    """str objects (num_queries, at most K), best first."""
    shards = [(shard, collection.ef_search) for collection in side.collections for shard in collection.shards]
    reference = ray.put(queries)
    ids, scores = np.empty((len(queries), 0), object), np.empty((len(queries), 0), np.float32)
    for _, (more_ids, more_scores) in fan_out(
        lambda task: search_ids.remote(side, *task, reference), shards, what="overlap"
    ):
        ids, scores = np.concatenate([ids, more_ids], axis=1), np.concatenate([scores, more_scores], axis=1)
        order = np.lexsort((ids.astype(str), -scores), axis=1)[:, :K]
        ids, scores = np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return ids


@ray.remote
def search_ids(side: Side, shard: Shard, ef: int, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ids, scores), each (num_queries, at most K), of one shard."""
    where = f"shard {shard.number}"
    with side.fetching() as fetch:
        graph, rows = open_graph(fetch, side.dim, shard, where), read_rows(fetch, shard, where)
    labels, scores = graph.search(queries, min(K, shard.num_items), ef, num_threads=1)
    return rows["item_id"].take(labels.ravel()).to_numpy().reshape(labels.shape), scores
