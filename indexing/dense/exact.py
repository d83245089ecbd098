"""Exact search: the ground truth that recall is measured against. Blocked, so that memory does not grow with items."""

import numpy as np

BLOCK_ROWS = 8192


def exact_search(
    vectors: np.ndarray, queries: np.ndarray, k: int, block_rows: int = BLOCK_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows of each query by inner product: labels int64 (num_queries, k), scores float32, best first.

    `vectors` is float32 (num_items, dim) (an np.memmap will do), `queries` float32 (num_queries, dim). Equal scores:
    lower label first. Where k exceeds num_items, num_items columns come back.
    Memory in addition to the input: about 10 bytes × block_rows × num_queries.
    """
    labels = np.empty((len(queries), 0), dtype=np.int64)
    scores = np.empty((len(queries), 0), dtype=np.float32)
    for start in range(0, len(vectors), block_rows):
        block = queries @ vectors[start : start + block_rows].T
        rows, columns = np.nonzero(_may_enter(block, scores, k))
        labels, scores = _best_per_row(
            np.concatenate([np.repeat(np.arange(len(queries)), labels.shape[1]), rows]),
            np.concatenate([labels.ravel(), columns + start]),
            np.concatenate([scores.ravel(), block[rows, columns]]),
            (len(queries), min(k, start + block.shape[1])),
        )
    return labels, scores


def merge_top_k(
    labels_a: np.ndarray, scores_a: np.ndarray, labels_b: np.ndarray, scores_b: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of two results over different items, each (num_queries, ≤ k): labels int64, scores float32.

    Equal scores: lower label first, so the order of merging doesn't matter.
    """
    labels, scores = np.concatenate([labels_a, labels_b], axis=1), np.concatenate([scores_a, scores_b], axis=1)
    order = np.lexsort((labels, -scores), axis=1)[:, :k]
    return np.take_along_axis(labels, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _may_enter(block: np.ndarray, best: np.ndarray, k: int) -> np.ndarray:
    """Which cells of `block`, scores (num_queries, num_columns), can be among the k best: bool, few per row.

    Once k are known, a tie with the worst of them loses, since later blocks have higher labels.
    """
    if best.shape[1] == k:
        return block > best[:, -1:]
    if block.shape[1] <= k:
        return np.ones(block.shape, dtype=bool)
    return block >= np.partition(block, -k, axis=1)[:, -k, None]


def _best_per_row(
    rows: np.ndarray, labels: np.ndarray, scores: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts ragged candidates by (row, score descending, label) and takes the first shape[1] of each row."""
    order = np.lexsort((labels, -scores, rows))
    starts = np.searchsorted(rows[order], np.arange(shape[0]))
    chosen = order[starts[:, None] + np.arange(shape[1])]
    return labels[chosen], scores[chosen]
