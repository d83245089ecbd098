"""What a vector must be: finite, and of unit norm."""

import numpy as np

NORM_TOLERANCE = 1e-3


def count_bad_vectors(vectors: np.ndarray) -> tuple[int, int]:
    """(rows with NaN or infinity, finite rows that are not of unit norm) of float32 (num_items, dim)."""
    norms = np.linalg.norm(vectors, axis=1)
    finite = np.isfinite(norms)
    return int((~finite).sum()), int((np.abs(norms[finite] - 1) > NORM_TOLERANCE).sum())
