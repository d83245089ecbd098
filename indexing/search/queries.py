"""Queries before the search: checked, and put into an order that is fast to search."""

import difflib
from collections.abc import Sequence

import numpy as np

from indexing.errors import ConfigError

MAX_QUERY_CHARACTERS = 10_000
MAX_PIVOTS = 128
MIN_QUERIES_PER_PIVOT = 16


def check_texts(texts: Sequence[str]) -> None:
    """Raises ConfigError unless every query is a text of 1 to 10,000 characters that are not all blank."""
    if not len(texts):
        raise ConfigError("expected at least one query, got none")
    for position, text in enumerate(texts):
        where = f"query {position}" if len(texts) > 1 else "query"
        if not isinstance(text, str):
            raise ConfigError(f"{where}: expected a text, got {type(text).__name__}")
        if not text.strip():
            raise ConfigError(f"{where}: expected a text, got an empty or blank one")
        if len(text) > MAX_QUERY_CHARACTERS:
            raise ConfigError(f"{where}: expected at most {MAX_QUERY_CHARACTERS} characters, got {len(text)}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{where}: expected valid Unicode, got a lone surrogate")


def check_vectors(vectors: np.ndarray, dim: int) -> np.ndarray:
    """The query vectors as float32 (num_queries, dim) of unit norm. Raises ConfigError where that can't be."""
    if vectors.ndim != 2 or vectors.shape[1] != dim or not len(vectors) or vectors.dtype.kind != "f":
        raise ConfigError(f"expected query vectors float32 (num_queries, {dim}), got {vectors.dtype} {vectors.shape}")
    vectors = vectors.astype(np.float32, copy=False)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ConfigError(
            f"query {bad[0]}: expected a vector that can be normalised, got one of norm {norms[bad[0], 0]}"
        )
    unit: np.ndarray = vectors / norms
    return unit


def order_by_similarity(vectors: np.ndarray) -> np.ndarray:
    """An order of the queries, int64 (num_queries,), in which similar ones follow each other.

    They traverse the same part of a graph, which is then in the processor's cache: 1.1 to 1.3 times the queries/s
    (2,000 queries, 100,000 × 384 vectors in 1 to 4 shards) at the cost of one product with a few of the queries.
    """
    step = max(MIN_QUERIES_PER_PIVOT, -(-len(vectors) // MAX_PIVOTS))
    return np.argsort((vectors @ vectors[::step].T).argmax(axis=1), kind="stable")


def choose_collections(names: Sequence[str] | None, known: list[str]) -> set[str]:
    """The named ones of the `known` collections, all for None. Raises ConfigError for an unknown name, or no name."""
    if isinstance(names, str) or (names is not None and not names):
        raise ConfigError(f"collections: expected a list of names, got {names!r}")
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:10]
            raise ConfigError(f"unknown collection {name!r}: did you mean {' or '.join(near)}?")
    return set(known if names is None else names)
