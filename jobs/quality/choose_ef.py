"""`ef_search` of a collection: the smallest that passes every gate. Pure: hits in, figures and gates out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from indexing.dense.params import K
from indexing.release.report import CollectionReport, Gate, QueryRecall, RecallLoss
from jobs.config.schema import Config
from jobs.quality.gates import at_least
from jobs.quality.recall import EF_GRID, distinct_share, recall_by_score, self_match, split_halves
from jobs.quality.sample import SLICE_SAMPLES, Sample
from jobs.quality.shard_search import Hits


@dataclass(frozen=True)
class Figures:
    """A collection with one ef."""

    recall_of_samples: np.ndarray
    """recall@10 of each sampled vector, float64 (num_samples,)."""
    recall_of_queries: np.ndarray | None
    """recall@10 of each configured query, float64 (num_queries,); None where there are none."""
    is_match: np.ndarray
    """Whether a sampled vector finds itself, bool (num_samples,)."""
    worst_shard: tuple[str, float]
    """The shard with the lowest recall@10 on its own, and that recall@10."""


def measure(query_sets: Mapping[str, np.ndarray], hits: Hits) -> dict[int, Figures]:
    """ef → figures. `query_sets` are those that were searched for, in their order: the sample, then any queries."""
    num_samples, truth = len(query_sets["items"]), hits.truth.scores
    figures = {}
    for ef, (_, scores) in hits.by_ef.items():
        recall = recall_by_score(scores, truth)
        worst = min(sorted(hits.recall_of_shard), key=lambda shard: hits.recall_of_shard[shard][ef])
        figures[ef] = Figures(
            recall_of_samples=recall[:num_samples],
            recall_of_queries=recall[num_samples:] if "queries" in query_sets else None,
            is_match=self_match(scores[:num_samples]),
            worst_shard=(worst, hits.recall_of_shard[worst][ef]),
        )
    return figures


def pick_ef(config: Config, name: str, sample: Sample, figures: Mapping[int, Figures]) -> int | None:
    """The smallest ef that passes every gate; None where none does."""
    passing = (ef for ef in sorted(figures) if all(gate.holds for gate in gates_of(config, name, sample, figures[ef])))
    return next(passing, None)


def choose_ef_search(
    config: Config, name: str, num_items: int, sample: Sample, query_sets: Mapping[str, np.ndarray], hits: Hits
) -> tuple[CollectionReport, list[Gate]]:
    """The figures of the collection `name` at the chosen ef (the largest tried, where none passes), and its gates."""
    measured = measure(query_sets, hits)
    ef = pick_ef(config, name, sample, measured) or max(measured)
    chosen, num_random = measured[ef], sample.num_random
    recall, queries = chosen.recall_of_samples, chosen.recall_of_queries
    report = CollectionReport(
        num_items=num_items,
        ef_search=ef,
        self_match=float(chosen.is_match[:num_random].mean()),
        items=QueryRecall(num_queries=num_random, recall_at_10=float(recall[:num_random].mean())),
        queries=None if queries is None else QueryRecall(num_queries=len(queries), recall_at_10=float(queries.mean())),
        worst_shard_recall_at_10=chosen.worst_shard[1],
        recall_at_10_by_slice={part: float(recall[rows].mean()) for part, rows in sample.slices.items()},
        recall_at_10_by_ef={str(each): mean_recall(of, num_random) for each, of in measured.items()},
        recall_loss=measure_loss(recall, hits, ef, sample),
    )
    return report, gates_of(config, name, sample, chosen)


def gates_of(config: Config, name: str, sample: Sample, figures: Figures) -> list[Gate]:
    """Of the random samples, of each slice that has enough samples and not all, of the queries, of the worst shard.

    Slices have the threshold of a shard: by chance alone, 50 samples can miss a threshold that 1,000 would reach.
    """
    limits, num_random = config.validation, sample.num_random
    slices = {part: rows for part, rows in sample.slices.items() if SLICE_SAMPLES <= rows.sum() < len(rows)}
    gates = [at_least("self-match", name, float(figures.is_match[:num_random].mean()), limits.min_self_match)]
    for part, rows in slices.items():
        gates.append(
            at_least(f"self-match of {part}", name, float(figures.is_match[rows].mean()), limits.min_shard_recall)
        )
    gates += recall_gates(config, "items", name, figures.recall_of_samples[:num_random])
    for part, rows in slices.items():
        recall = float(figures.recall_of_samples[rows].mean())
        gates.append(at_least(f"recall@{K} of {part}", name, recall, limits.min_shard_recall))
    if figures.recall_of_queries is not None:
        gates += recall_gates(config, "queries", name, figures.recall_of_queries)
    return [*gates, at_least(f"recall@{K} of the worst shard", *figures.worst_shard, limits.min_shard_recall)]


def recall_gates(config: Config, kind: str, name: str, recall: np.ndarray) -> list[Gate]:
    """On each half of the queries, so that the figure that is reported isn't the one that was optimised."""
    return [
        at_least(f"recall@{K} of {kind}, {half}", name, float(part.mean()), config.index.recall_target)
        for half, part in zip(("chosen on", "confirmed on"), split_halves(recall), strict=True)
    ]


def mean_recall(figures: Figures, num_random: int) -> float:
    """Over the random samples and the queries."""
    queries = figures.recall_of_queries
    parts = [figures.recall_of_samples[:num_random], *([] if queries is None else [queries])]
    return float(np.concatenate(parts).mean())


def measure_loss(recall: np.ndarray, hits: Hits, ef: int, sample: Sample) -> dict[str, RecallLoss]:
    """Lost by the neighbour's own graph, or in merging the shards; `recall` is of the sample, which comes first."""
    bit = np.uint16(EF_GRID.index(ef))
    is_found = (hits.truth.found_by[: len(recall)] >> bit & np.uint16(1)).astype(bool)
    in_shard = distinct_share(is_found, hits.truth.scores[: len(recall)])
    everything = {"all": np.arange(len(recall)) < sample.num_random, **sample.slices}
    return {
        name: RecallLoss(
            graph=float(1 - in_shard[rows].mean()), shard_merge=float(in_shard[rows].mean() - recall[rows].mean())
        )
        for name, rows in everything.items()
    }
