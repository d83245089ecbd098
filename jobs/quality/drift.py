"""The gates that compare with the parent release: how far vectors have moved, and how many hits have stayed.

They read every shard of both releases, so they are measured only where a limit is set.
"""

import logging
from typing import Any

import numpy as np
import ray

from cluster.fanout import fan_out
from indexing.dense.params import K
from indexing.release.diff import Drift, Range, RangeDiff, diff_range, overlap, plan_ranges, sum_drift
from indexing.release.manifest import Release
from indexing.search.queries import load_release_encoder
from indexing.store import Store, open_store
from indexing.store.cache import BlobCache, default_cache_folder
from jobs.config.schema import Config
from jobs.quality.full_search import Side, retrieve, side_of
from jobs.quality.gates import Gate, at_least, at_most
from jobs.workspace.records import BuiltShard

logger = logging.getLogger(__name__)


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
    before = Side(parent.collections, parent.dim, shards[0].workspace, store)
    after = side_of(shards, figures, store)
    if limits.max_drift is not None and (drift := measure_drift(before, after)):
        gates.append(at_most("mean drift of vectors", "all", drift.mean, limits.max_drift))
    if limits.min_overlap is not None and texts and queries is not None and parent.encoder:
        share = overlap(retrieve(before, encode_as_before(parent, store, texts), K)[0], retrieve(after, queries, K)[0])
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
