"""Recall by label."""

import numpy as np


def recall_at_k(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true neighbours that were found: labels (num_queries, k) both, the order within a row is free.

    Labels within a row are distinct. Raises ValueError when the shapes differ or nothing is there to measure.
    """
    return float(recall_per_query(found, truth).mean())


def recall_per_query(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`recall_at_k` of each query, float64 (num_queries,)."""
    if found.shape != truth.shape or found.ndim != 2 or not found.size:
        raise ValueError(f"expected two non-empty arrays (num_queries, k), got {found.shape} and {truth.shape}")
    both = np.sort(np.concatenate([found, truth], axis=1), axis=1)
    return (both[:, 1:] == both[:, :-1]).sum(axis=1) / truth.shape[1]
