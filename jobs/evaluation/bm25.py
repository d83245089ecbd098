"""Search by words, BM25: the baseline that an encoder has to beat."""

import logging
from collections.abc import Sequence

import bm25s
import numpy as np

WORD = r"\w+"
"""Words of one letter count, and none is a stopword: titles come in many languages, and some are The Who."""


def bm25_search(texts: Sequence[str], queries: Sequence[str], k: int) -> np.ndarray:
    """int64 (num_queries, min(k, num_texts)): each query's rows in `texts`, best first, -1 where none has its words.

    Lucene's BM25 with k1 1.5, b 0.75, the defaults of bm25s (Lù, BM25S, arXiv:2407.03618), on lower-cased words. Of
    texts with the same score the earlier comes first.
    """
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it lets debug lines through to every handler
    rows = np.full((len(queries), min(k, len(texts))), -1, np.int64)
    words = bm25s.tokenize(list(texts), token_pattern=WORD, stopwords=[], show_progress=False)
    if not words.vocab:
        return rows
    index = bm25s.BM25()
    index.index(words, create_empty_token=False, show_progress=False)
    query_words = bm25s.tokenize(list(queries), token_pattern=WORD, stopwords=[], return_ids=False, show_progress=False)
    for row, tokens in zip(rows, query_words, strict=True):
        # Not index.retrieve: which of the equal scores at its cut it takes is up to numpy's partition.
        best = _best_rows(index.get_scores_from_ids(index.get_tokens_ids(tokens)), k)
        row[: len(best)] = best
    return rows


def _best_rows(scores: np.ndarray, k: int) -> np.ndarray:
    """int64 (at most k,): the rows of the highest of `scores` (num_texts,) above 0, ties by row."""
    rows = np.flatnonzero(scores)
    if len(rows) > k:
        rows = rows[scores[rows] >= np.partition(scores[rows], -k)[-k]]
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]
