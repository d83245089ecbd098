"""Stage 4: the shards as they would be served, against exact search; chooses ef_search; every gate must hold.

What is loaded is the very file that will be published, its digest checked; first in a process of its own, so that a
crash of hnswlib is a gate that does not hold. Memory is bounded: a task holds one shard and a block of scores; the
driver holds the sampled queries and their ten best.
"""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.dense.exact import merge_top_k
from indexing.dense.load_check import check_loads
from indexing.dense.params import K
from indexing.errors import ValidationFailed
from indexing.release.codec import to_plain
from indexing.release.manifest import Release
from indexing.release.shard import live_vectors, open_graph, read_live_rows, read_metadata
from indexing.vectors import count_bad_vectors
from jobs.config.schema import Config
from jobs.inputs.queries import encode_queries, query_texts
from jobs.progress import Bar, Progress
from jobs.quality.drift import drift_gates, has_drift_limits
from jobs.quality.full_search import Found, search_exactly
from jobs.quality.gates import Gate, at_least, at_most, equal
from jobs.quality.recall import EF_GRID, choose_ef, recall_by_score, self_match, split_halves
from jobs.quality.recall_loss import (
    NUM_ITEMS,
    NUM_NEAR,
    Near,
    encode_again,
    found_by_graph,
    load_reference,
    mean_by_slice,
    merge_near,
    precision_loss,
    texts_of,
    worst_skew,
)
from jobs.quality.slices import slice_rows
from jobs.workspace.artifact import Artifact
from jobs.workspace.blobs import local_blobs
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.records import BuiltShard, built_shards

FORMAT = 5
EXACT = 0
"""Stands among the ef values for exact search."""
MIN_SKEW_COSINE = 0.98
"""bfloat16 keeps 0.999; another encoder, prompt or template does not come near."""
TRAITS = {"item_type": pa.string(), "language": pa.string(), "popularity": pa.float64()}
"""Columns by which recall is reported apart."""
SHARD_BITS = 32
"""A label of a collection is shard number << 32 | label of the shard."""
FIRST_EFS = tuple(ef for ef in EF_GRID if ef <= 64)
"""Tried first: most catalogues need no more, and the larger ones would take 6/7 of the time."""
FLAG_BIT = 51
"""From this bit on a true neighbour's label tells which values of `EF_GRID` have found it in its shard."""


class GatesFailed(ValidationFailed):
    """Figures of the built shards are out of bounds; shards without deltas may do better."""


def validate(
    config: Config, prepared: Artifact, built: Artifact, parent: Release | None, progress: Progress
) -> Artifact:
    """Runs the stage, or skips it when the same shards have passed the same gates; the artifact is the report.

    Raises GatesFailed when gates do not hold; the report is written all the same. Raises ValidationFailed for a graph
    that crashes hnswlib.
    """
    texts = query_texts(config)
    artifact = validated_artifact(config, built, parent, texts)
    if artifact.read_marker():
        return artifact
    num_items = prepared.require_marker()["num_items"]
    shards = built_shards(built)
    gates: list[Gate] = []
    memory: list[int] = []
    with ThreadPoolExecutor(1) as pool, progress.stage("validate", 2 * sum(num_items.values())) as bar:
        # Beside what Ray's workers do, and in one thread: torch's settings are those of the process.
        encoding = pool.submit(encode_queries, config, texts) if texts is not None else None
        loading = pool.submit(load_reference, config) if not config.vectors.path else None
        samples, slices = inspect_shards(config, shards, gates, memory, bar)
        query_sets = {name: {"items": vectors} for name, vectors in samples.items()}
        queries = encoding.result() if encoding is not None else None
        if queries is not None:
            query_sets = {name: {**sets, "queries": queries} for name, sets in query_sets.items()}
        found, near = search_shards(config, shards, query_sets, FIRST_EFS, memory, bar)
        unmet = {name: sets for name, sets in query_sets.items() if pick_ef(config, sets, *found[name]) is None}
        if unmet:
            again = [shard for shard in shards if shard.collection in unmet]
            found |= search_shards(config, again, unmet, EF_GRID, memory, bar)[0]
    collections = {}
    for name, count in num_items.items():
        collections[name] = choose(config, name, query_sets[name], slices[name], *found[name], gates)
        collections[name]["num_items"] = sum(shard.entry.num_items for shard in shards if shard.collection == name)
        if loading is not None:
            encoded = encode_again(loading.result(), near[name])
            losses = precision_loss(near[name], encoded)[: len(samples[name])]
            for part, loss in mean_by_slice(losses, slices[name]).items():
                collections[name]["recall_loss"][part]["vector_precision"] = loss
            skew = worst_skew(samples[name][:NUM_ITEMS], encoded)
            gates.append(at_least("cosine of stored vectors with the encoder's own", name, skew, MIN_SKEW_COSINE))
        gates.append(equal("number of items", name, collections[name]["num_items"], count))
        gates += compare_with_parent(config, name, count, parent)
    gates += drift_gates(config, shards, collections, parent, texts, queries)
    report = {"collections": collections, "gates": [asdict(gate) for gate in gates]}
    raise_failed_gates(gates, artifact, report)
    artifact.write_marker({"report": report, "peak_memory_bytes": max(memory)})
    return artifact


def validated_artifact(config: Config, built: Artifact, parent: Release | None, queries: list[str] | None) -> Artifact:
    counts = {collection.name: collection.num_items for collection in parent.collections} if parent else None
    digests = [to_plain(shard.entry) for shard in built_shards(built)]
    compared = parent.writer_id if parent and has_drift_limits(config) else None
    name = fingerprint(
        FORMAT, built.path, digests, config.validation, queries, config.index.recall_target, counts, compared
    )
    return Artifact(built.store, f"validations/{name}")


def raise_failed_gates(gates: list[Gate], artifact: Artifact, report: dict[str, Any]) -> None:
    failed = [gate for gate in gates if not gate.holds]
    if not failed:
        return
    key = artifact.key("failed.json")
    artifact.store.put(key, json.dumps(report, sort_keys=True, indent=1).encode())
    texts = [f"{gate.scope}: {gate.name} is {gate.value:.4g}, expected {gate.expected}" for gate in failed]
    raise GatesFailed(
        f"{len(failed)} of {len(gates)} gates do not hold: {'; '.join(texts[:3])}; nothing was published; "
        f"report: {artifact.store.describe(key)}"
    )


def inspect_shards(
    config: Config, shards: list[BuiltShard], gates: list[Gate], memory: list[int], bar: Bar
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Gates on each shard by itself; returns, by collection, sampled vectors, float32 (num_samples, dim), and their
    slices (`slice_rows`).
    """
    totals: Counter[str] = Counter()
    for shard in shards:
        totals[shard.collection] += shard.entry.num_items

    def submit(shard: BuiltShard) -> ray.ObjectRef:
        share = config.validation.num_samples * shard.entry.num_items
        return inspect_shard.remote(shard, -(-share // totals[shard.collection]))

    results: dict[str, dict[str, Any]] = {}
    for shard, found in fan_out(submit, shards, what="validate"):
        bar.advance(shard.entry.num_items)
        memory.append(found["peak_memory_bytes"])
        results[str(shard)] = found
    samples: dict[str, list[np.ndarray]] = {name: [] for name in totals}
    traits: dict[str, list[pa.Table]] = {name: [] for name in totals}
    for shard in shards:  # in this order, whichever was done first: the report is a blob, so equal runs give equal ones
        found = results[str(shard)]
        samples[shard.collection].append(found["samples"])
        traits[shard.collection].append(found["traits"])
        gates += [
            equal("rows without a distinct id", str(shard), found["num_repeated_ids"], 0),
            equal("vectors with NaN or infinity", str(shard), found["num_not_finite"], 0),
            equal("vectors not of unit norm", str(shard), found["num_not_unit"], 0),
        ]
    tables = {name: pa.concat_tables(parts) for name, parts in traits.items()}
    slices = {
        name: slice_rows(table["item_type"].to_pylist(), table["language"].to_pylist(), table["popularity"].to_numpy())
        for name, table in tables.items()
    }
    return {name: np.concatenate(parts) for name, parts in samples.items()}, slices


@ray.remote
def inspect_shard(shard: BuiltShard, num_samples: int) -> dict[str, Any]:
    """Reads every id and vector of the shard; samples vectors evenly: label order is by hash, so that is random."""
    entry = shard.entry
    with local_blobs(shard.workspace) as fetch:
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
    return {
        "num_repeated_ids": entry.num_items - num_ids,
        "num_not_finite": int(bad[0]),
        "num_not_unit": int(bad[1]),
        "samples": np.concatenate(samples),
        "traits": metadata.select(list(TRAITS)).take(np.concatenate(labels)).cast(pa.schema(list(TRAITS.items()))),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def search_shards(
    config: Config,
    shards: list[BuiltShard],
    query_sets: dict[str, dict[str, np.ndarray]],
    efs: Sequence[int],
    memory: list[int],
    bar: Bar,
) -> tuple[dict[str, tuple[dict[int, Found], dict[str, dict[int, float]]]], dict[str, Near]]:
    """By collection: (what all its shards together find, by ef; recall@10 of each shard by itself, by ef), and the
    nearest texts of a few items, where there are texts.
    """
    queries = {name: ray.put(np.concatenate(list(sets.values()))) for name, sets in query_sets.items()}
    merged: dict[str, dict[int, Found]] = {}
    recalls: dict[str, dict[str, dict[int, float]]] = {name: {} for name in query_sets}
    nearest: dict[str, Near] = {}
    for shard, (found, near, peak) in fan_out(
        lambda shard: search_shard.remote(config, shard, queries[shard.collection], efs), shards, what="validate"
    ):
        bar.advance(shard.entry.num_items)
        memory.append(peak)
        name, truth = shard.collection, found[EXACT][1]
        recalls[name][str(shard)] = {ef: float(recall_by_score(found[ef][1], truth).mean()) for ef in efs}
        merged[name] = {ef: merge(merged[name][ef], found[ef]) for ef in found} if name in merged else found
        if near is not None:
            nearest[name] = merge_near(nearest[name], near) if name in nearest else near
    return {name: (merged[name], recalls[name]) for name in merged}, nearest


def choose(
    config: Config,
    name: str,
    query_sets: dict[str, np.ndarray],
    slices: dict[str, np.ndarray],
    merged: dict[int, Found],
    recall_of_shard: dict[str, dict[int, float]],
    gates: list[Gate],
) -> dict[str, Any]:
    """Chooses ef for a collection; returns the figures at that ef."""
    flags = merged[EXACT][0]
    recalls, matches = measure_efs(query_sets, merged)
    target, limits = config.index.recall_target, config.validation
    ef = pick_ef(config, query_sets, merged, recall_of_shard) or max(recalls)
    match = matches[ef]
    gates.append(at_least("self-match", name, match, limits.min_self_match))
    figures: dict[str, Any] = {"ef_search": ef, "self_match": match}
    for (kind, size), values in zip(((kind, len(part)) for kind, part in query_sets.items()), recalls[ef], strict=True):
        for half, part in zip(("chosen on", "confirmed on"), split_halves(values), strict=True):
            gates.append(at_least(f"recall@{K} of {kind}, {half}", name, float(part.mean()), target))
        figures[kind] = {"num_queries": size, f"recall_at_{K}": float(values.mean())}
    worst = min(sorted(recall_of_shard), key=lambda shard: recall_of_shard[shard][ef])
    gates.append(at_least(f"recall@{K} of the worst shard", worst, recall_of_shard[worst][ef], limits.min_shard_recall))
    figures["worst_shard_recall_at_10"] = recall_of_shard[worst][ef]
    recall, in_shard = recalls[ef][0], (flags >> FLAG_BIT >> EF_GRID.index(ef) & 1)[: len(recalls[ef][0])].mean(axis=1)
    everything = {"all": np.ones(len(recall), bool), **slices}
    figures["recall_at_10_by_slice"] = {name: float(recall[rows].mean()) for name, rows in slices.items()}
    figures["recall_loss"] = {
        name: {
            "graph": float(1 - in_shard[rows].mean()),
            "shard_merge": float(in_shard[rows].mean() - recall[rows].mean()),
        }
        for name, rows in everything.items()
    }
    figures["recall_at_10_by_ef"] = {str(ef): float(np.concatenate(parts).mean()) for ef, parts in recalls.items()}
    return figures


def pick_ef(
    config: Config,
    query_sets: dict[str, np.ndarray],
    merged: dict[int, Found],
    recall_of_shard: dict[str, dict[int, float]],
) -> int | None:
    """The smallest of the ef that were tried with which every gate holds: where recall is there already and another
    gate is not, a larger one may pass them all.
    """
    recalls, matches = measure_efs(query_sets, merged)
    limits = config.validation
    passing = {
        ef: values
        for ef, values in recalls.items()
        if matches[ef] >= limits.min_self_match
        and min(recall[ef] for recall in recall_of_shard.values()) >= limits.min_shard_recall
    }
    return choose_ef(passing, config.index.recall_target)


def measure_efs(
    query_sets: dict[str, np.ndarray], merged: dict[int, Found]
) -> tuple[dict[int, list[np.ndarray]], dict[int, float]]:
    """By ef: recall@10 of each query of each set, and the self-match of the items, which are the first set."""
    bounds = np.cumsum([len(queries) for queries in query_sets.values()])[:-1]
    truth = merged[EXACT][1]
    efs = [ef for ef in merged if ef != EXACT]
    recalls = {ef: np.split(recall_by_score(merged[ef][1], truth), bounds) for ef in efs}
    return recalls, {ef: own_match(np.split(merged[ef][1], bounds)[0]) for ef in efs}


def own_match(scores: np.ndarray) -> float:
    """`self_match` of items' own vectors, which score 1 with themselves."""
    return self_match(scores, np.ones(len(scores), np.float32))


def merge(one: Found, other: Found) -> Found:
    return merge_top_k(one[0], one[1], other[0], other[1], K)


@ray.remote
def search_shard(
    config: Config, shard: BuiltShard, queries: np.ndarray, efs: Sequence[int]
) -> tuple[dict[int, Found], Near | None, int]:
    """(labels, scores), each (num_queries, at most K), exact under EXACT, by the graph under each ef; the texts nearest
    to a few of the queries; peak memory. Labels of the exact ones tell in their upper bits which ef have found them.
    """
    with local_blobs(shard.workspace) as fetch:
        graph = open_graph(fetch, shard.dim, shard.entry, str(shard))
        labels, scores = search_exactly(graph, queries, NUM_NEAR)
        near = None
        if not config.vectors.path:
            metadata = read_metadata(fetch, shard.entry, str(shard))
            near = texts_of(config, metadata, labels[:NUM_ITEMS]), scores[:NUM_ITEMS]
    k = min(K, shard.entry.num_items)
    found = {ef: graph.search(queries, k, ef, num_threads=1) for ef in efs}
    labels, scores = labels[:, :k], scores[:, :k]
    flags = sum(found_by_graph(found[ef][1], scores).astype(np.int64) << FLAG_BIT + EF_GRID.index(ef) for ef in efs)
    offset = shard.entry.number << SHARD_BITS
    found = {ef: (labels_found + offset, scores_found) for ef, (labels_found, scores_found) in found.items()}
    return {EXACT: (labels + offset + flags, scores), **found}, near, peak_memory_bytes()


def compare_with_parent(config: Config, name: str, num_items: int, parent: Release | None) -> list[Gate]:
    before = {collection.name: collection.num_items for collection in parent.collections}.get(name) if parent else None
    if not before:
        return []
    return [at_most("change of row count", name, abs(num_items - before) / before, config.validation.max_row_change)]
