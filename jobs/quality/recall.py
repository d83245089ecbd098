"""Recall against exact search, and the choice of `ef_search`. Pure: numbers in, numbers out."""

from collections.abc import Mapping, Sequence

import numpy as np

EF_GRID = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SCORE_TOLERANCE = 1e-5
"""Scores of one pair differ by up to some 1e-6 between hnswlib's loops and a matrix product."""


def recall_by_score(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 (num_queries,): the share of the k results whose score reaches that of the k-th true neighbour.

    `found` and `truth` are scores (num_queries, k), best first. Counting by score instead of label, as ann-benchmarks
    does, leaves equal vectors (the same text under two ids) interchangeable.
    """
    recalls: np.ndarray = (found >= truth[:, -1:] - SCORE_TOLERANCE).mean(axis=1)
    return recalls


def self_match(scores: np.ndarray, own: np.ndarray) -> float:
    """Share of items that a search for their own vector finds first: its best score reaches `own` (num_queries,)."""
    return float((scores[:, 0] >= own - SCORE_TOLERANCE).mean())


def choose_ef(recalls: Mapping[int, Sequence[np.ndarray]], target: float) -> int | None:
    """The smallest ef whose mean recall reaches `target` on one half of every query set and on the other half.

    `recalls[ef]` holds, for each query set, recall per query (num_queries,). Even rows choose, odd rows confirm, so
    that the figure that is reported isn't the one that was optimised. None when no ef does.
    """
    for ef in sorted(recalls):
        if all(halves[0].mean() >= target and halves[1].mean() >= target for halves in map(split_halves, recalls[ef])):
            return ef
    return None


def split_halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Even and odd rows; both are the whole where there is only one row."""
    return (values[::2], values[1::2]) if len(values) > 1 else (values, values)
