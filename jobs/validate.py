"""Stage 4: the shards as they would be served, against exact search; chooses ef_search; every gate must hold.

What is loaded is the very file that will be published, its digest checked; first in a process of its own, so that a
crash of hnswlib is a gate that does not hold. Memory is bounded: a task holds one shard and a block of scores; the
driver holds the sampled queries and their ten best.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.encoder import load_encoder
from indexing.errors import DamagedError, ValidationFailed
from indexing.exact import exact_search, merge_top_k
from indexing.hnsw import Index, load_index, search_index
from indexing.release.load_check import check_loads
from indexing.release.manifest import Release
from indexing.store import Store
from indexing.validation import (
    EF_GRID,
    Gate,
    K,
    at_least,
    at_most,
    choose_ef,
    count_bad_vectors,
    equal,
    recall_by_score,
    self_match,
    split_halves,
)

from .config import Config, fingerprint
from .encode import local_model
from .progress import Bar, Progress
from .source import read_queries
from .workspace import Artifact, local_copy

FORMAT = 1
BLOCK_ROWS = 8192
EXACT = 0
"""Stands among the ef values for exact search."""
SHARD_BITS = 32
"""A label of a collection is shard number << 32 | label of the shard."""

Found = tuple[np.ndarray, np.ndarray]
"""Labels int64 and scores float32, each (num_queries, at most K), best first."""


@dataclass(frozen=True)
class BuiltShard:
    """One shard in the workspace; plain data, so that Ray can ship it."""

    store: Store
    collection: str
    number: int
    num_items: int
    dim: int
    index: dict[str, Any]
    """sha256, size_bytes and key of the blob; so too below."""
    items: dict[str, Any]
    metadata: dict[str, Any]
    is_reused: bool

    def __str__(self) -> str:
        return f"{self.collection}/{self.number}"


def validate(
    config: Config, prepared: Artifact, built: Artifact, parent: Release | None, progress: Progress
) -> Artifact:
    """Runs the stage, or skips it when the same shards have passed the same gates; the artifact is the report.

    Raises ValidationFailed when a gate does not hold; the report is written all the same.
    """
    texts = query_texts(config)
    artifact = validated_artifact(config, built, parent, texts)
    if artifact.read_marker():
        return artifact
    num_items = prepared.require_marker()["num_items"]
    queries = encode_queries(config, texts)
    gates: list[Gate] = []
    collections: dict[str, Any] = {}
    memory: list[int] = []
    with progress.stage("validate", 2 * sum(num_items.values())) as bar:
        for name, count in num_items.items():
            shards = [shard for shard in built_shards(built) if shard.collection == name]
            samples = inspect_shards(config, shards, gates, memory, bar)
            query_sets = {"items": samples} if queries is None else {"items": samples, "queries": queries}
            collections[name] = measure_recall(config, name, shards, query_sets, gates, memory, bar)
            gates.append(equal("number of items", name, sum(shard.num_items for shard in shards), count))
            gates += compare_with_parent(config, name, count, parent)
    report = {"collections": collections, "gates": [asdict(gate) for gate in gates]}
    raise_failed_gates(gates, artifact, report)
    artifact.write_marker({"report": report, "peak_memory_bytes": max(memory)})
    return artifact


def validated_artifact(config: Config, built: Artifact, parent: Release | None, queries: list[str] | None) -> Artifact:
    counts = {collection.name: collection.num_items for collection in parent.collections} if parent else None
    digests = [
        [shard.index["sha256"], shard.items["sha256"], shard.metadata["sha256"]] for shard in built_shards(built)
    ]
    name = fingerprint(FORMAT, built.path, digests, config.validation, queries, config.index.recall_target, counts)
    return Artifact(built.store, f"validations/{name}")


def built_shards(built: Artifact) -> list[BuiltShard]:
    return [BuiltShard(store=built.store, **shard) for shard in built.require_marker()["shards"]]


def raise_failed_gates(gates: list[Gate], artifact: Artifact, report: dict[str, Any]) -> None:
    failed = [gate for gate in gates if not gate.holds]
    if not failed:
        return
    key = artifact.key("failed.json")
    artifact.store.put(key, json.dumps(report, sort_keys=True, indent=1).encode())
    texts = [f"{gate.scope}: {gate.name} is {gate.value:.4g}, expected {gate.expected}" for gate in failed]
    raise ValidationFailed(
        f"{len(failed)} of {len(gates)} gates do not hold: {'; '.join(texts[:3])}; nothing was published; "
        f"report: {artifact.store.describe(key)}"
    )


def query_texts(config: Config) -> list[str] | None:
    """At most num_samples of the configured queries, always the same; None when there are none."""
    if config.validation.queries is None:
        return None
    texts = read_queries(config.validation.queries, config.s3, "validation.queries")
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode()).digest())[: config.validation.num_samples]


def encode_queries(config: Config, texts: list[str] | None) -> np.ndarray | None:
    """float32 (num_texts, dim), encoded as queries."""
    if texts is None:
        return None
    return load_encoder(local_model(config), config.encoder.settings()).encode(texts, kind="query")


def inspect_shards(
    config: Config, shards: list[BuiltShard], gates: list[Gate], memory: list[int], bar: Bar
) -> np.ndarray:
    """Gates on each shard by itself; returns the sampled vectors of all, float32 (num_samples, dim)."""
    total = sum(shard.num_items for shard in shards)
    results: dict[int, dict[str, Any]] = {}
    for shard, found in fan_out(
        lambda shard: inspect_shard.remote(shard, -(-config.validation.num_samples * shard.num_items // total)),
        shards,
        what="validate",
    ):
        bar.advance(shard.num_items)
        memory.append(found["peak_memory_bytes"])
        results[shard.number] = found
    for shard in shards:  # in this order, whichever was done first: the report is a blob, so equal runs give equal ones
        found = results[shard.number]
        gates += [
            equal("rows without a distinct id", str(shard), found["num_repeated_ids"], 0),
            equal("vectors with NaN or infinity", str(shard), found["num_not_finite"], 0),
            equal("vectors not of unit norm", str(shard), found["num_not_unit"], 0),
        ]
    return np.concatenate([results[shard.number]["samples"] for shard in shards])


@ray.remote
def inspect_shard(shard: BuiltShard, num_samples: int) -> dict[str, Any]:
    """Reads every id and vector of the shard; samples vectors evenly: label order is by hash, so that is random."""
    for blob in (shard.items, shard.metadata):
        with shard.store.open(blob["key"]) as file:
            table = pq.ParquetFile(file).read()
        if table.num_rows != shard.num_items:
            raise DamagedError(f"{shard}: expected {shard.num_items} rows in {blob['key']}, got {table.num_rows}")
        if blob is shard.items:
            num_ids = pc.count_distinct(table["item_id"]).as_py()
    with checked_copy(shard) as path:
        check_loads(path, shard.dim, shard.num_items, str(shard))
        index = load_index(path, shard.dim, shard.num_items)
    bad = np.zeros(2, dtype=np.int64)
    for _, vectors in vector_blocks(index, shard.num_items):
        bad += count_bad_vectors(vectors)
    labels = np.linspace(0, shard.num_items - 1, min(num_samples, shard.num_items)).astype(np.int64)
    return {
        "num_repeated_ids": shard.num_items - num_ids,
        "num_not_finite": int(bad[0]),
        "num_not_unit": int(bad[1]),
        "samples": np.asarray(index.get_items(labels), dtype=np.float32),
        "peak_memory_bytes": peak_memory_bytes(),
    }


@contextmanager
def checked_copy(shard: BuiltShard) -> Iterator[Path]:
    """The shard's graph on this machine. Raises DamagedError when its bytes are not what was built."""
    with local_copy(shard.store, shard.index["key"]) as path:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.index["sha256"]:
            raise DamagedError(
                f"{shard}: {shard.store.describe(shard.index['key'])} is not what was built; delete it, run again"
            )
        yield path


def vector_blocks(index: Index, num_items: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first label, float32 (at most BLOCK_ROWS, dim)) over all items."""
    for start in range(0, num_items, BLOCK_ROWS):
        yield start, np.asarray(index.get_items(np.arange(start, min(start + BLOCK_ROWS, num_items))), dtype=np.float32)


def measure_recall(
    config: Config,
    name: str,
    shards: list[BuiltShard],
    query_sets: dict[str, np.ndarray],
    gates: list[Gate],
    memory: list[int],
    bar: Bar,
) -> dict[str, Any]:
    """Recall@10 of each shard and of all merged, at every ef; chooses ef; returns the figures at that ef."""
    bounds = np.cumsum([len(queries) for queries in query_sets.values()])[:-1]
    queries = ray.put(np.concatenate(list(query_sets.values())))
    merged: dict[int, Found] = {}
    recall_of_shard: dict[str, dict[int, float]] = {}
    for shard, (found, peak) in fan_out(lambda shard: search_shard.remote(shard, queries), shards, what="validate"):
        bar.advance(shard.num_items)
        memory.append(peak)
        truth = found[EXACT][1]
        recall_of_shard[str(shard)] = {ef: float(recall_by_score(found[ef][1], truth).mean()) for ef in EF_GRID}
        merged = {ef: merge(merged[ef], found[ef]) for ef in found} if merged else found
    truth = merged[EXACT][1]
    recalls = {ef: np.split(recall_by_score(merged[ef][1], truth), bounds) for ef in EF_GRID}
    matches = {ef: own_match(np.split(merged[ef][1], bounds)[0]) for ef in EF_GRID}
    target, limits = config.index.recall_target, config.validation
    # Where recall is there already and another gate is not, a larger ef may pass them all.
    passing = [
        ef
        for ef in EF_GRID
        if matches[ef] >= limits.min_self_match
        and min(recall[ef] for recall in recall_of_shard.values()) >= limits.min_shard_recall
    ]
    ef = choose_ef({ef: recalls[ef] for ef in passing}, target) or EF_GRID[-1]
    match = matches[ef]
    gates.append(at_least("self-match", name, match, limits.min_self_match))
    figures: dict[str, Any] = {
        "num_items": sum(shard.num_items for shard in shards),
        "ef_search": ef,
        "self_match": match,
    }
    for (kind, size), values in zip(((kind, len(part)) for kind, part in query_sets.items()), recalls[ef], strict=True):
        for half, part in zip(("chosen on", "confirmed on"), split_halves(values), strict=True):
            gates.append(at_least(f"recall@{K} of {kind}, {half}", name, float(part.mean()), target))
        figures[kind] = {"num_queries": size, f"recall_at_{K}": float(values.mean())}
    worst = min(sorted(recall_of_shard), key=lambda shard: recall_of_shard[shard][ef])
    gates.append(at_least(f"recall@{K} of the worst shard", worst, recall_of_shard[worst][ef], limits.min_shard_recall))
    figures["worst_shard_recall_at_10"] = recall_of_shard[worst][ef]
    figures["recall_at_10_by_ef"] = {str(ef): float(np.concatenate(parts).mean()) for ef, parts in recalls.items()}
    return figures


def own_match(scores: np.ndarray) -> float:
    """`self_match` of items' own vectors, which score 1 with themselves."""
    return self_match(scores, np.ones(len(scores), np.float32))


def merge(one: Found, other: Found) -> Found:
    return merge_top_k(one[0], one[1], other[0], other[1], K)


@ray.remote
def search_shard(shard: BuiltShard, queries: np.ndarray) -> tuple[dict[int, Found], int]:
    """(labels, scores), each (num_queries, at most K), exact under EXACT, by the graph under each ef; peak memory."""
    with checked_copy(shard) as path:
        index = load_index(path, shard.dim, shard.num_items)
    k = min(K, shard.num_items)
    found = {ef: search_index(index, queries, k, ef, num_threads=1) for ef in EF_GRID}
    exact = None
    for start, vectors in vector_blocks(index, shard.num_items):
        labels, scores = exact_search(vectors, queries, k)
        block = (labels + start, scores)
        exact = block if exact is None else merge(exact, block)
    assert exact is not None
    offset = shard.number << SHARD_BITS
    found = {ef: (labels + offset, scores) for ef, (labels, scores) in {EXACT: exact, **found}.items()}
    return found, peak_memory_bytes()


def compare_with_parent(config: Config, name: str, num_items: int, parent: Release | None) -> list[Gate]:
    before = {collection.name: collection.num_items for collection in parent.collections}.get(name) if parent else None
    if not before:
        return []
    return [at_most("change of row count", name, abs(num_items - before) / before, config.validation.max_row_change)]
