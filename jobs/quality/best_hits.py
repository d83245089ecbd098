"""The best hits of many queries over many shards, as numbers, merged as the shards come."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from indexing.ranks import text_ranks

QUERIES_PER_BLOCK = 1024
IDS = pa.large_string()
"""The ids of a hundred thousand queries' hits may be more bytes than 32-bit offsets can count."""


@dataclass(frozen=True)
class Hits:
    """Hits of each query, best first, one query after the other."""

    counts: np.ndarray
    """int32 (num_queries,)."""
    items: np.ndarray
    """int32 (num_hits,): rows of `ids`."""
    scores: np.ndarray
    """float32 (num_hits,)."""
    ids: pa.Array
    """Texts (num_ids,), each once."""

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 (num_queries + 1,): query q has hits ends[q] to ends[q + 1]."""
        return np.append(0, np.cumsum(self.counts, dtype=np.int64))


def shard_hits(blocks: Iterable[tuple[np.ndarray, np.ndarray]], floor: np.ndarray, item_ids: pa.ChunkedArray) -> Hits:
    """The hits of a shard that reach `floor`, float32 (num_queries,).

    `blocks` are labels int64 and scores float32, each (some queries, k), best first. `item_ids` is by label.
    """
    counts, labels, scores = [], [], []
    first = 0
    for block_labels, block_scores in blocks:
        reaches = block_scores >= floor[first : first + len(block_scores), None]
        counts.append(reaches.sum(axis=1, dtype=np.int32))
        labels.append(block_labels[reaches].astype(np.int32))
        scores.append(block_scores[reaches])
        first += len(block_scores)
    used, items = renumber(np.concatenate(labels), len(item_ids))
    return Hits(np.concatenate(counts), items, np.concatenate(scores), item_ids.take(pa.array(used)).combine_chunks())


def renumber(numbers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(the numbers below `size` that occur, int64, ascending; the place of each number among them, int32)."""
    occurs = np.zeros(size, bool)
    occurs[numbers] = True
    places = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
    return np.flatnonzero(occurs), places[numbers]


class BestHits:
    """The k best hits of each query. Equal scores: by item id, so shards may come in any order.

    Memory: 8 bytes × num_queries × k, as much again for hits that wait to be merged, and each found id once.
    """

    def __init__(self, num_queries: int, k: int) -> None:
        self.k = k
        self.items = np.empty((num_queries, 0), np.int32)
        """int32 (num_queries, k, or all items where there are fewer): rows of `ids`."""
        self.scores = np.empty((num_queries, 0), np.float32)
        """float32, of the same shape, descending."""
        self.ids = pa.array([], IDS)
        self._waiting: list[Hits] = []

    @property
    def floor(self) -> np.ndarray:
        """float32 (num_queries,): a hit below it is not among the k best."""
        num_queries, num_held = self.scores.shape
        return self.scores[:, -1].copy() if num_held == self.k else np.full(num_queries, -np.inf, np.float32)

    @property
    def item_ids(self) -> np.ndarray:
        """str objects, of the shape of `items`."""
        ids: np.ndarray = self.ids.to_numpy(zero_copy_only=False)[self.items]
        return ids

    def add(self, hits: Hits) -> None:
        """Of another shard: all its k best, or those of them that reach `floor`, as it was at any time."""
        self._waiting.append(hits)
        if sum(len(hits.items) for hits in self._waiting) >= len(self.items) * self.k:
            self.merge()

    def merge(self) -> None:
        """Merges what was added last."""
        num_queries, num_held = self.items.shape
        held = Hits(np.full(num_queries, num_held, np.int32), self.items.ravel(), self.scores.ravel(), self.ids)
        lists, self._waiting = [held, *self._waiting], []
        firsts = np.cumsum([0, *(len(hits.ids) for hits in lists)])
        ids = pa.concat_arrays([hits.ids.cast(IDS) for hits in lists])
        width = int(np.sum([hits.counts for hits in lists], axis=0).min(initial=self.k))
        items, scores = np.empty((num_queries, width), np.int32), np.empty((num_queries, width), np.float32)
        for start in range(0, num_queries, QUERIES_PER_BLOCK):
            block = slice(start, min(start + QUERIES_PER_BLOCK, num_queries))
            items[block], scores[block] = best_of(lists, firsts, block, width, ids)
        used, self.items = renumber(items, len(ids))
        self.scores, self.ids = scores, ids.take(pa.array(used))


def best_of(
    lists: Sequence[Hits], firsts: np.ndarray, block: slice, width: int, ids: pa.Array
) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores (num_queries, width) of a block of queries. Item i of list l is row firsts[l] + i of `ids`."""
    counts = [hits.counts[block] for hits in lists]
    parts = [slice(hits.ends[block.start], hits.ends[block.stop]) for hits in lists]
    queries = np.concatenate([np.repeat(np.arange(len(each)), each) for each in counts])
    items = np.concatenate(
        [hits.items[part] + np.int32(first) for hits, part, first in zip(lists, parts, firsts, strict=False)]
    )
    scores = np.concatenate([hits.scores[part] for hits, part in zip(lists, parts, strict=True)])
    order = best_first(queries, scores, items, ids)
    totals = np.sum(counts, axis=0)
    chosen = order[(np.cumsum(totals) - totals)[:, None] + np.arange(width)]
    return items[chosen], scores[chosen]


def best_first(queries: np.ndarray, scores: np.ndarray, items: np.ndarray, ids: pa.Array) -> np.ndarray:
    """The order by query, then by score descending; ids are compared only where scores tie."""
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 becomes 0
    bits ^= np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))  # ascending, as the scores are
    keys = queries.astype(np.uint64) << np.uint64(32) | ~bits
    order = np.argsort(keys, kind="stable")  # a few ascending runs, of which it makes use: 8 × as fast as lexsort
    is_tie = np.diff(keys[order]) == 0
    tied = np.flatnonzero(np.append(is_tie, False) | np.append(False, is_tie))
    if len(tied):
        rows = order[tied]
        order[tied] = rows[np.lexsort((text_ranks(ids.take(pa.array(items[rows]))), keys[rows]))]
    return order
