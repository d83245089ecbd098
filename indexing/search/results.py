"""An open release and what a search of it finds: over all shards and collections, merged by score."""

import operator
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from indexing.encoder import require_text
from indexing.errors import ConfigError
from indexing.ranks import text_ranks
from indexing.release.manifest import Release
from indexing.release.shard import LoadedShard
from indexing.search.held_encoder import HeldEncoder
from indexing.search.queries import check_texts, check_vectors, choose_collections, order_by_similarity
from indexing.search.values import row_values

if TYPE_CHECKING:
    from indexing.encoder.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One found item."""

    item_id: str
    score: float
    """Cosine similarity of query and item."""
    collection: str
    metadata: dict[str, Any]
    """The columns to display: title, creators …

    A value that Python has no type for, such as the date `infinity`, is given as text.
    """


class OpenRelease:
    """A release in memory. It never changes, and any number of threads may search it."""

    def __init__(
        self, release: Release, shards: list[LoadedShard], encoder: HeldEncoder | None, source: str = ""
    ) -> None:
        """`source` is the store's address, for messages."""
        self.release, self.shards = release, shards
        self._held_encoder, self._source = encoder, source
        self._encoding = threading.Lock()  # an encoder serves one thread at a time
        self.item_ids = pa.chunked_array([shard.item_ids for shard in shards], pa.string())
        self.first_rows = np.cumsum([0] + [shard.num_rows for shard in shards])[:-1]

    @overload
    def search(self, queries: str, k: int = 10, collections: str | Sequence[str] | None = None) -> list[Hit]: ...
    @overload
    def search(
        self, queries: list[str] | np.ndarray, k: int = 10, collections: str | Sequence[str] | None = None
    ) -> "Results": ...
    def search(
        self,
        queries: str | list[str] | np.ndarray,
        k: int = 10,
        collections: str | Sequence[str] | None = None,
    ) -> "list[Hit] | Results":
        """The k best items of each query, best first; among these k, equal scores by item id.

        Where more items share the k-th score than there is room for, which of them are found depends on the graph, and
        may differ in the next release.

        `queries`: one text (returns a list of hits), or a list of texts, or float (num_queries, dim) vectors
        (normalised here), searched together on all cores. Raises ConfigError for queries that can't be searched for:
        blank or too long texts, zero or NaN vectors, a wrong dim; and for a k above the number of searched items.
        """
        shards = self._searched_shards(collections)
        num_items = sum(self.shards[number].num_items for number in shards)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= num_items:
            raise ConfigError(f"k={k}: expected 1 to {num_items}, the number of items in the searched collections")
        if isinstance(queries, str):
            return self._search_vectors(self._encode([queries]), k, shards)[0]
        if isinstance(queries, np.ndarray):
            return self._search_vectors(check_vectors(queries, self.release.dim), k, shards)
        return self._search_vectors(self._encode(queries), k, shards)

    def _search_vectors(self, vectors: np.ndarray, k: int, shards: list[int]) -> "Results":
        turn = order_by_similarity(vectors)
        found = []
        for number in shards:
            shard = self.shards[number]
            labels, scores = shard.graph.search(vectors[turn], min(k, shard.num_items), shard.ef_search, _num_cores())
            found.append((labels + self.first_rows[number], scores))
        rows, scores = (np.concatenate(arrays, axis=1)[np.argsort(turn)] for arrays in zip(*found, strict=True))
        order = self._best_first(rows, scores)[:, :k]
        return Results(self, np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1))

    def _best_first(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The order of each query's candidates: by score, and item ids only where scores tie."""
        order = np.argsort(-scores, axis=1, kind="stable")
        ordered = np.take_along_axis(scores, order, axis=1)
        tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if tied.size:
            order[tied] = np.lexsort((text_ranks(self.ids_of(rows[tied])), -scores[tied]), axis=1)
        return order

    def ids_of(self, rows: np.ndarray) -> np.ndarray:
        """str objects, of the shape of `rows`, which are counted over the loaded shards.

        From each shard its own: of an array in chunks Arrow would join all of them first.
        """
        numbers, ids = self.shard_numbers(rows), np.empty(rows.shape, dtype=object)
        for number in np.unique(numbers):
            is_here = numbers == number
            labels = pa.array(rows[is_here] - self.first_rows[number])
            ids[is_here] = self.shards[number].item_ids.take(labels).to_numpy(zero_copy_only=False)
        return ids

    def shard_numbers(self, rows: np.ndarray) -> np.ndarray:
        """int64, of the shape of `rows`: in which of the loaded shards each is."""
        return np.searchsorted(self.first_rows, rows, side="right") - 1

    def _searched_shards(self, collections: str | Sequence[str] | None) -> list[int]:
        names = [collections] if isinstance(collections, str) else collections
        wanted = choose_collections(names, list(dict.fromkeys(shard.collection for shard in self.shards)))
        return [number for number, shard in enumerate(self.shards) if shard.collection in wanted]

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        check_texts(texts)
        with self._encoding:
            vectors: np.ndarray = self._encoder.encode(list(texts), kind="query")
        return vectors

    @cached_property
    def _encoder(self) -> "Encoder":
        if self.release.encoder is None:
            raise ConfigError(f"{self._source}: release {self.release.number} has no encoder: pass vectors, not text")
        if self._held_encoder is None:
            require_text()
            raise ConfigError(f"{self._source}: release {self.release.number} was opened before text could be encoded")
        return self._held_encoder.load()


class Results(Sequence[list[Hit]]):
    """What a batch of queries found, in columns; `results[i]` makes the hits of one query, best first."""

    def __init__(self, release: OpenRelease, rows: np.ndarray, scores: np.ndarray) -> None:
        self._release = release
        self.rows = rows
        """int64 (num_queries, k): row in the release, counted over its loaded shards."""
        self.scores = scores
        """float32 (num_queries, k), descending."""

    @cached_property
    def item_ids(self) -> np.ndarray:
        """str objects (num_queries, k)."""
        return self._release.ids_of(self.rows)

    @cached_property
    def collections(self) -> np.ndarray:
        """str objects (num_queries, k): the collection of each hit."""
        names = np.array([shard.collection for shard in self._release.shards], dtype=object)
        of_hits: np.ndarray = names[self._release.shard_numbers(self.rows)]
        return of_hits

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, position: int) -> list[Hit]: ...
    @overload
    def __getitem__(self, position: slice) -> list[list[Hit]]: ...
    def __getitem__(self, position: int | slice) -> list[Hit] | list[list[Hit]]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        rows, scores = self.rows[operator.index(position)], self.scores[operator.index(position)]
        return [self._make_hit(*found) for found in zip(self._release.shard_numbers(rows), rows, scores, strict=True)]

    def _make_hit(self, number: int, row: int, score: float) -> Hit:
        shard, label = self._release.shards[number], int(row - self._release.first_rows[number])
        return Hit(
            item_id=shard.item_ids[label].as_py(),
            score=float(score),
            collection=shard.collection,
            metadata=row_values(shard.metadata, label),
        )


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
