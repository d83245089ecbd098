"""The gates a release must pass, and how `ef_search` is chosen. Pure: numbers in, verdicts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

K = 10
EF_GRID = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
SCORE_TOLERANCE = 1e-5
"""Scores of one pair differ by up to some 1e-6 between hnswlib's loops and a matrix product."""
NORM_TOLERANCE = 1e-3
MIN_SLICE = 20
HEAD_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One check: what was measured, what was expected, and whether it holds."""

    name: str
    scope: str
    """The collection or shard it speaks of."""
    value: float
    expected: str
    holds: bool


def at_least(name: str, scope: str, value: float, threshold: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"≥ {threshold:g}", holds=value >= threshold)


def at_most(name: str, scope: str, value: float, threshold: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"≤ {threshold:g}", holds=value <= threshold)


def equal(name: str, scope: str, value: float, expected: float) -> Gate:
    return Gate(name=name, scope=scope, value=value, expected=f"= {expected:g}", holds=value == expected)


def recall_by_score(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """float64 (num_queries,): the share of the k results whose score reaches that of the k-th true neighbour.

    `found` and `truth` are scores (num_queries, k), best first. Counting by score instead of label, as ann-benchmarks
    does, leaves equal vectors (the same text under two ids) interchangeable.
    """
    return (found >= truth[:, -1:] - SCORE_TOLERANCE).mean(axis=1)


def slice_rows(
    item_types: Sequence[str], languages: Sequence[str | None], popularity: np.ndarray
) -> dict[str, np.ndarray]:
    """Name of a slice → bool (num_items,): each item type and language, and the most popular fifth against the rest.

    popularity: float (num_items,), NaN where it is not known. Slices of fewer than `MIN_SLICE` items are left out.
    """
    traits = {"item_type": np.array(item_types, object), "language": np.array(languages, object)}
    slices = {
        f"{trait} {value}": values == value
        for trait, values in traits.items()
        for value in sorted({value for value in values if value})
    }
    slices |= slice_popularity(popularity)
    return {name: rows for name, rows in slices.items() if rows.sum() >= MIN_SLICE}


def slice_popularity(popularity: np.ndarray) -> dict[str, np.ndarray]:
    """Head and tail as `slice_rows` has them; nothing where no popularity is known."""
    is_known = np.isfinite(popularity)
    if not is_known.any():
        return {}
    is_head = is_known & (popularity >= np.quantile(popularity[is_known], 1 - HEAD_SHARE))
    return {"popularity head": is_head, "popularity tail": is_known & ~is_head}


def self_match(scores: np.ndarray, own: np.ndarray) -> float:
    """Share of queries, own vectors of items, whose best result scores what the item does, `own` (num_queries,)."""
    return float((scores[:, 0] >= own - SCORE_TOLERANCE).mean())


def count_bad_vectors(vectors: np.ndarray) -> tuple[int, int]:
    """(rows with NaN or infinity, finite rows that are not of unit norm) of float32 (num_items, dim)."""
    norms = np.linalg.norm(vectors, axis=1)
    finite = np.isfinite(norms)
    return int((~finite).sum()), int((np.abs(norms[finite] - 1) > NORM_TOLERANCE).sum())


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
