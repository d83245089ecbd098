"""How good a ranking is, query by query or on a slice of the items, and whether one beats another beyond chance."""

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from ir_measures import RR, R, Success, nDCG

from jobs.config.training import METRIC_NAMES

METRICS = dict(zip(METRIC_NAMES, (nDCG @ 10, RR @ 10, Success @ 10, R @ 10, R @ 30, R @ 100), strict=True))
"""Name of a metric → the measure of ir_measures: trec_eval's for all but RR@10, which is that of MS MARCO's script."""
QUERIES_PER_BLOCK = 256
"""Queries measured at once: their judgements are copied, some 2,000 for a query with many relevant items."""
DRAWS_PER_BLOCK = 1 << 20
"""Groups drawn at once in the bootstrap; 8 bytes each, a few times over."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    queries: list[str]
    """Two queries may have the same text; each has its own row."""
    item_ids: np.ndarray
    """str objects (num_queries, k), distinct within a row, best first; None where fewer were found."""

    def __post_init__(self) -> None:
        if self.item_ids.ndim != 2 or len(self.item_ids) != len(self.queries):
            raise ValueError(f"expected item_ids ({len(self.queries)}, k), got {self.item_ids.shape}")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean difference and its bootstrap interval; NaN where it was not measured: comparisons with it are false."""

    mean: float
    low: float
    high: float


def measure(
    ranking: Ranking, relevant: Mapping[str, Collection[str]], metrics: Mapping[str, ir_measures.Measure] = METRICS
) -> dict[str, np.ndarray]:
    """Each metric of each query, float64 (num_queries,), in the ranking's order; NaN where nothing is relevant.

    `relevant`: query → item ids. Relevance is binary: where the ids are a mapping's keys, its values are not read.
    """
    names = {metric: name for name, metric in metrics.items()}
    values = {name: np.full(len(ranking.queries), np.nan) for name in metrics}
    for start in range(0, len(ranking.queries), QUERIES_PER_BLOCK):
        judgements: dict[str, dict[str, int]] = {}
        run: dict[str, dict[str, int]] = {}
        for row in range(start, min(start + QUERIES_PER_BLOCK, len(ranking.queries))):
            if items := relevant.get(ranking.queries[row]):
                judgements[str(row)] = dict.fromkeys(items, 1)
                # trec_eval sorts by score and breaks ties by id; the rank as the score leaves nothing to break.
                run[str(row)] = {item: -rank for rank, item in enumerate(_found(ranking, row))}
        if judgements:
            for result in ir_measures.iter_calc(list(names), judgements, run):
                values[names[result.measure]][int(result.query_id)] = result.value
    return values


def slice_relevant(
    ranking: Ranking, relevant: Mapping[str, Collection[str]], keep: Container[str]
) -> tuple[Ranking, dict[str, set[str]]]:
    """The ranking and judgements with which `measure` measures how well the items in `keep` (a set) are found.

    A relevant item outside `keep` leaves both, being neither right nor wrong here; items that are not relevant stay.
    Rows that lose items are padded with None, so rank deeper than the deepest metric: what follows moves up.
    """
    dropped = {query: {item for item in items if item not in keep} for query, items in relevant.items()}
    item_ids = np.full(ranking.item_ids.shape, None, dtype=object)
    for row, query in enumerate(ranking.queries):
        left = [item for item in _found(ranking, row) if item not in dropped.get(query, ())]
        item_ids[row, : len(left)] = left
    kept = {query: set(items) - dropped[query] for query, items in relevant.items()}
    return Ranking(queries=ranking.queries, item_ids=item_ids), kept


def _found(ranking: Ranking, row: int) -> list[str]:
    return [item for item in ranking.item_ids[row] if item is not None]


def paired_bootstrap(
    new: np.ndarray,
    old: np.ndarray,
    groups: Sequence[str],
    num_samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of `new - old`, float (num_queries,) both, and its percentile interval from resampled query groups.

    Queries of a group depend on each other, so whole groups are drawn with replacement (the cluster bootstrap: Field &
    Welsh, Bootstrapping clustered data, JRSS B 2007) and each query counts once. Queries that are NaN on either side
    are left out. One group says nothing about others: then the bounds are NaN, and without any query the mean is too.
    """
    difference = np.asarray(new, np.float64) - old
    measured = ~np.isnan(difference)
    if not measured.any():
        return Interval(mean=np.nan, low=np.nan, high=np.nan)
    difference = difference[measured]
    names, group = np.unique(np.asarray(groups, dtype=object)[measured], return_inverse=True)
    if len(names) < 2:
        return Interval(mean=float(difference.mean()), low=np.nan, high=np.nan)
    means = _resample_means(np.bincount(group, difference), np.bincount(group), num_samples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean=float(difference.mean()), low=float(low), high=float(high))


def _resample_means(sums: np.ndarray, counts: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """float64 (num_samples,): the mean over the queries of as many groups as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    samples_per_block = max(1, DRAWS_PER_BLOCK // len(sums))
    means = []
    for start in range(0, num_samples, samples_per_block):
        size = (min(samples_per_block, num_samples - start), len(sums))
        drawn = rng.integers(len(sums), size=size)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
