"""Recall against exact search. Pure: numbers in, numbers out.

Hits of equal score count once. Equal vectors have equal scores, so a thousand items with one text weigh as much as one,
and it does not matter which of them was found.
"""

import numpy as np

EF_GRID = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SCORE_TOLERANCE = 1e-5
"""Scores of one pair differ by up to some 1e-6 between hnswlib's loops and a matrix product."""


def recall_by_score(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 (num_queries,): the share of the distinct true scores that are among those found.

    `found` and `truth` are scores (num_queries, k), best first.
    """
    return distinct_share(found_by_graph(found, truth), truth)


def found_by_graph(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """bool (num_queries, k): which of the true scores were found too; both scores (num_queries, k)."""
    is_found: np.ndarray = (np.abs(found[:, None, :] - exact[:, :, None]) <= SCORE_TOLERANCE).any(axis=2)
    return is_found


def distinct_share(is_found: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float64 (num_queries,): the share of the distinct `scores` of which one is found; both (num_queries, k).

    `scores` are best first; `is_found` is bool.
    """
    is_first = np.ones(scores.shape, bool)
    is_first[:, 1:] = scores[:, :-1] - scores[:, 1:] > SCORE_TOLERANCE
    groups = np.cumsum(is_first, axis=1) - 1
    has_found = np.zeros(scores.shape, bool)
    rows = np.broadcast_to(np.arange(len(scores))[:, None], scores.shape)
    has_found[rows[is_found], groups[is_found]] = True
    share: np.ndarray = has_found.sum(axis=1) / is_first.sum(axis=1)
    return share


def self_match(scores: np.ndarray) -> np.ndarray:
    """bool (num_queries,): whether the best result of an item's own vector is the item, or one of an equal vector."""
    is_match: np.ndarray = scores[:, 0] >= 1 - SCORE_TOLERANCE  # a vector of unit norm scores 1 with itself
    return is_match


def split_halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Even and odd rows; both are the whole where there is only one row."""
    return (values[::2], values[1::2]) if len(values) > 1 else (values, values)
