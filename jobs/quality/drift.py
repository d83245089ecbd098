"""The gates that compare with the parent release: how far vectors have moved, and how many hits are still the same.

They read every shard of both releases, so they are measured only where a limit is set.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import ray

from cluster.fanout import fan_out
from indexing.dense.params import K
from indexing.release.diff import Drift, Range, RangeDiff, diff_range, overlap, plan_ranges, sides_of, sum_drift
from indexing.release.manifest import Release
from indexing.release.report import CollectionReport, Gate
from indexing.search.held_encoder import load_release_encoder
from indexing.store import Store
from indexing.store.cache import BlobCache, default_cache_folder
from jobs.config.schema import Config
from jobs.inputs.inputs import Inputs
from jobs.quality.full_search import ReleaseFiles, built_files, search_release
from jobs.quality.gates import at_least, at_most
from jobs.run import Run
from jobs.workspace.blobs import built_blobs
from jobs.workspace.records import BuiltShard

logger = logging.getLogger(__name__)


def has_drift_limits(config: Config) -> bool:
    return (config.validation.max_drift, config.validation.min_overlap) != (None, None)


def drift_gates(
    run: Run,
    inputs: Inputs,
    shards: Sequence[BuiltShard],
    reports: Mapping[str, CollectionReport],
    queries: np.ndarray | None,
) -> list[Gate]:
    """Drift and overlap against the parent release, where a limit is set; with `on_drift: warn` they are only logged.

    `queries` are `inputs.queries` by tonight's encoder, float32 (num_texts, dim).
    """
    parent, limits = inputs.parent, run.config.validation
    if parent is None or not has_drift_limits(run.config):
        return []
    gates = []
    before = ReleaseFiles(parent.collections, parent.dim, run.workspace, run.store, parent.format_version)
    after = built_files(run, shards, reports)
    if limits.max_drift is not None and (drift := measure_drift(before, after)):
        gates.append(at_most("mean drift of vectors", "all", drift.mean, limits.max_drift))
    if limits.min_overlap is not None and inputs.queries and queries is not None and parent.encoder:
        found_before = search_release(before, encode_as_before(parent, run.store, inputs.queries), K)[0]
        share = overlap(found_before, search_release(after, queries, K)[0])
        gates.append(at_least(f"overlap@{K} of queries", "all", share, limits.min_overlap))
    if limits.on_drift == "fail":
        return gates
    for gate in (gate for gate in gates if not gate.holds):
        logger.warning("validate: %s is %.4g, expected %s (on_drift: warn)", gate.name, gate.value, gate.expected)
    return []


def measure_drift(before: ReleaseFiles, after: ReleaseFiles) -> Drift | None:
    """How far the vectors of the items that are in both have moved; None where they can't be compared."""
    ranges = plan_ranges(*(sides_of(files.collections, files.format_version) for files in (before, after)))
    found = fan_out(lambda each: compare_range.remote(each, before, after), ranges, what="drift")
    return sum_drift(part for _, part in found)


@ray.remote
def compare_range(each: Range, before: ReleaseFiles, after: ReleaseFiles) -> RangeDiff:
    with built_blobs(after.workspace, after.store) as fetch:
        return diff_range(each, before.dim, after.dim, fetch)


def encode_as_before(parent: Release, store: Store, texts: list[str]) -> np.ndarray:
    """float32 (num_texts, dim) by the parent's own encoder."""
    assert parent.encoder is not None
    return load_release_encoder(store, BlobCache(default_cache_folder()), parent.encoder).encode(texts, kind="query")
