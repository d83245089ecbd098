"""`ef_search` of a collection: the smallest that passes every gate. Pure: hits in, figures and gates out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from indexing.dense.params import K
from indexing.release.report import CollectionReport, Gate, QueryRecall, RecallLoss
from jobs.config.schema import Config
from jobs.quality.gates import at_least
from jobs.quality.recall import EF_GRID, choose_ef, recall_by_score, self_match, split_halves
from jobs.quality.shard_search import Hits


@dataclass(frozen=True)
class Measured:
    """A collection with each ef that was tried."""

    recalls: dict[int, list[np.ndarray]]
    """ef → for each query set, recall@10 of each query, float64 (num_queries,)."""
    matches: dict[int, float]
    """ef → self-match of the items, which are the first query set."""
    worst_recall: dict[int, float]
    """ef → recall@10 of the worst shard by itself."""


def measure(query_sets: Mapping[str, np.ndarray], hits: Hits) -> Measured:
    bounds = np.cumsum([len(queries) for queries in query_sets.values()])[:-1]
    truth = hits.truth.scores
    recalls, matches, worst = {}, {}, {}
    for ef, (_, scores) in hits.by_ef.items():
        recalls[ef] = np.split(recall_by_score(scores, truth), bounds)
        items = np.split(scores, bounds)[0]
        matches[ef] = self_match(items, np.ones(len(items), np.float32))  # an item's own vector scores 1 with itself
        worst[ef] = min(of_shard[ef] for of_shard in hits.recall_of_shard.values())
    return Measured(recalls, matches, worst)


def pick_ef(config: Config, measured: Measured) -> int | None:
    """The smallest ef that passes every gate; None where none does.

    Where recall is reached and another gate fails, a larger ef may pass them all.
    """
    limits = config.validation
    passing = {
        ef: values
        for ef, values in measured.recalls.items()
        if measured.matches[ef] >= limits.min_self_match and measured.worst_recall[ef] >= limits.min_shard_recall
    }
    return choose_ef(passing, config.index.recall_target)


def choose_ef_search(
    config: Config,
    name: str,
    num_items: int,
    query_sets: Mapping[str, np.ndarray],
    slices: Mapping[str, np.ndarray],
    hits: Hits,
) -> tuple[CollectionReport, list[Gate]]:
    """The figures of the collection `name` at the chosen ef (the largest tried, where none passes), and its gates."""
    measured = measure(query_sets, hits)
    ef = pick_ef(config, measured) or max(measured.recalls)
    recalls = measured.recalls[ef]
    sets = {
        kind: QueryRecall(num_queries=len(part), recall_at_10=float(values.mean()))
        for (kind, part), values in zip(query_sets.items(), recalls, strict=True)
    }
    report = CollectionReport(
        num_items=num_items,
        ef_search=ef,
        self_match=measured.matches[ef],
        items=sets["items"],
        queries=sets.get("queries"),
        worst_shard_recall_at_10=measured.worst_recall[ef],
        recall_at_10_by_slice={part: float(recalls[0][rows].mean()) for part, rows in slices.items()},
        recall_at_10_by_ef={str(each): float(np.concatenate(parts).mean()) for each, parts in measured.recalls.items()},
        recall_loss=measure_loss(recalls[0], hits, ef, slices),
    )
    return report, gates_of(config, name, list(query_sets), measured, hits, ef)


def gates_of(config: Config, name: str, kinds: Sequence[str], measured: Measured, hits: Hits, ef: int) -> list[Gate]:
    limits, target = config.validation, config.index.recall_target
    gates = [at_least("self-match", name, measured.matches[ef], limits.min_self_match)]
    for kind, values in zip(kinds, measured.recalls[ef], strict=True):
        for half, part in zip(("chosen on", "confirmed on"), split_halves(values), strict=True):
            gates.append(at_least(f"recall@{K} of {kind}, {half}", name, float(part.mean()), target))
    worst = min(sorted(hits.recall_of_shard), key=lambda shard: hits.recall_of_shard[shard][ef])
    recall = hits.recall_of_shard[worst][ef]
    return [*gates, at_least(f"recall@{K} of the worst shard", worst, recall, limits.min_shard_recall)]


def measure_loss(recall: np.ndarray, hits: Hits, ef: int, slices: Mapping[str, np.ndarray]) -> dict[str, RecallLoss]:
    """Lost by the neighbour's own graph, or in merging the shards; `recall` is of the items, which come first."""
    bit = np.uint16(EF_GRID.index(ef))
    in_shard = (hits.truth.found_by[: len(recall)] >> bit & np.uint16(1)).mean(axis=1)
    everything = {"all": np.ones(len(recall), bool), **slices}
    return {
        name: RecallLoss(
            graph=float(1 - in_shard[rows].mean()), shard_merge=float(in_shard[rows].mean() - recall[rows].mean())
        )
        for name, rows in everything.items()
    }
