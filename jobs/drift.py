"""The gates that compare with the parent release: how far vectors have moved, and how many hits have stayed.

They read every shard of both releases, so they are measured only where a limit is set.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.fanout import fan_out
from indexing.cache import BlobCache, default_cache_folder
from indexing.metrics import overlap
from indexing.release.diff import Drift, Range, RangeDiff, diff_range, plan_ranges, sum_drift
from indexing.release.manifest import Blob, Collection, Fetch, Release, Shard
from indexing.release.shard import open_graph, read_rows
from indexing.search import load_release_encoder
from indexing.store import Store, open_store
from indexing.validation import Gate, K, at_least, at_most

from .build import BuiltShard
from .changes import download_into
from .config import Config
from .workspace import local_blobs, workspace_key

logger = logging.getLogger(__name__)


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


def has_drift_limits(config: Config) -> bool:
    return (config.validation.max_drift, config.validation.min_overlap) != (None, None)


def drift_gates(
    config: Config,
    shards: list[BuiltShard],
    figures: dict[str, Any],
    parent: Release | None,
    texts: list[str] | None,
    queries: np.ndarray | None,
) -> list[Gate]:
    """Drift and overlap against the parent release, where a limit is set; with `on_drift: warn` they are only said.

    `queries` are `texts` as tonight's encoder has them, float32 (num_texts, dim).
    """
    limits, gates, store = config.validation, [], open_store(config.store, config.s3)
    if parent is None or not has_drift_limits(config):
        return []
    built = tuple(
        Collection(
            name=name,
            item_types=(),
            num_items=of_collection["num_items"],
            ef_search=of_collection["ef_search"],
            shards=tuple(shard.entry for shard in shards if shard.collection == name),
        )
        for name, of_collection in figures.items()
    )
    before = Side(parent.collections, parent.dim, shards[0].workspace, store)
    after = Side(built, shards[0].dim, shards[0].workspace, store)
    if limits.max_drift is not None and (drift := measure_drift(before, after)):
        gates.append(at_most("mean drift of vectors", "all", drift.mean, limits.max_drift))
    if limits.min_overlap is not None and texts and queries is not None and parent.encoder:
        share = overlap(best_ids(before, encode_as_before(parent, store, texts)), best_ids(after, queries))
        gates.append(at_least(f"overlap@{K} of queries", "all", share, limits.min_overlap))
    if limits.on_drift == "fail":
        return gates
    for gate in (gate for gate in gates if not gate.holds):
        logger.warning("validate: %s is %.4g, expected %s (on_drift: warn)", gate.name, gate.value, gate.expected)
    return []


def measure_drift(before: Side, after: Side) -> Drift | None:
    """How far the vectors of the items have moved that are in both; None where they can't be compared."""
    ranges = plan_ranges(before.collections, after.collections)
    found = fan_out(lambda each: compare_range.remote(each, before, after), ranges, what="drift")
    return sum_drift(part for _, part in found)


@ray.remote
def compare_range(each: Range, before: Side, after: Side) -> RangeDiff:
    with after.fetching() as fetch:
        return diff_range(each, before.dim, after.dim, fetch)


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
