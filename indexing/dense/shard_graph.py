"""The graphs of one shard searched as one: rows with equal vectors share a node, and deltas have graphs of their own.

A label counts the shard's rows: first those of the graph it was built with, then those of each delta.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from indexing.dense.hnsw import Graph
from indexing.ranks import text_ranks


def node_numbers(fingerprints: pa.Array) -> np.ndarray:
    """int32 (num_rows,): the node of each row. Equal fingerprints share one; nodes are in the order of first rows."""
    numbers: np.ndarray = fingerprints.dictionary_encode().indices.to_numpy()
    return numbers


def first_rows(nodes: np.ndarray) -> np.ndarray:
    """int64 (num_nodes,), ascending: the first row of each node of `node_numbers`."""
    return np.unique(nodes, return_index=True)[1]


class Segment:
    """One graph and the rows that it stands for. Rows that are deleted are never found."""

    def __init__(self, graph: Graph, is_live: np.ndarray, nodes: np.ndarray | None, item_ids: pa.Array) -> None:
        """`is_live`: bool (num_rows,). `nodes`: int32 (num_rows,), or None where row i has node i."""
        self._graph, self._nodes = graph, nodes
        self.rows = np.flatnonzero(is_live)
        self._num_nodes = len(self.rows)
        if nodes is None:
            graph.delete(np.flatnonzero(~is_live))
        else:
            self._share(nodes, item_ids)

    def _share(self, nodes: np.ndarray, item_ids: pa.Array) -> None:
        """Lists the live rows of each node in the order of their ids, and deletes nodes that have none."""
        live_nodes = nodes[self.rows]
        self._counts = np.bincount(live_nodes, minlength=int(nodes.max()) + 1)
        order = np.argsort(live_nodes, kind="stable")
        shared = np.flatnonzero(self._counts[live_nodes[order]] > 1)  # only among these do ids matter
        rows = order[shared]
        ranks = text_ranks(item_ids.take(pa.array(self.rows[rows])).to_numpy(zero_copy_only=False))
        order[shared] = rows[np.lexsort((ranks, live_nodes[rows]))]
        self._members = self.rows[order]
        self._starts = np.cumsum(self._counts) - self._counts
        self._graph.delete(np.flatnonzero(self._counts == 0))
        self._num_nodes = int(np.count_nonzero(self._counts))

    def search(self, queries: np.ndarray, k: int, ef: int, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows (or all, where there are fewer) of each query: int64 and scores float32, best first.

        Rows that share a node come in the order of their item ids.
        """
        nodes, scores = self._graph.search(queries, min(k, self._num_nodes), ef, num_threads)
        if self._nodes is None:
            return nodes, scores
        ends = np.minimum(np.cumsum(self._counts[nodes], axis=1), min(k, len(self.rows)))
        taken = np.diff(ends, axis=1, prepend=0)  # rows of each found node, until there are k of the query
        width, taken = ends[0, -1], taken.ravel()
        place = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
        rows = self._members[np.repeat(self._starts[nodes.ravel()], taken) + place]
        return rows.reshape(-1, width), np.repeat(scores.ravel(), taken).reshape(-1, width)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """float32 (num_rows, dim)."""
        return self._graph.vectors(rows if self._nodes is None else self._nodes[rows])


class ShardGraph:
    """A shard in memory. Any number of threads may search it."""

    def __init__(self, segments: Sequence[Segment], sizes: Sequence[int]) -> None:
        """`sizes`: the rows of each segment, deleted ones included."""
        self._segments, self._firsts = segments, np.cumsum([0, *sizes])[:-1]

    @property
    def labels(self) -> np.ndarray:
        """int64 (num_items,), ascending: the items that a search can find."""
        found = [segment.rows + first for segment, first in zip(self._segments, self._firsts, strict=True)]
        return np.concatenate(found)

    def vectors(self, labels: np.ndarray) -> np.ndarray:
        """float32 (num_labels, dim), of deleted ones too."""
        labels = np.asarray(labels)
        if len(self._segments) == 1:
            return self._segments[0].vectors(labels)
        numbers = np.searchsorted(self._firsts, labels, side="right") - 1
        parts = [
            self._segments[number].vectors(labels[numbers == number] - self._firsts[number])
            for number in np.unique(numbers)
        ]
        order = np.argsort(numbers, kind="stable")
        vectors = np.concatenate(parts)
        vectors[order] = vectors.copy()
        return vectors

    def blocks(self, block_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(labels, float32 (at most block_rows, dim)) over all items, by label."""
        labels = self.labels
        for start in range(0, len(labels), block_rows):
            block = labels[start : start + block_rows]
            yield block, self.vectors(block)

    def search(self, queries: np.ndarray, k: int, ef: int, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The approximate k best of each query: labels int64 (num_queries, k), inner products float32, best first.

        `queries` is float32 (num_queries, dim); k must not exceed the number of items.
        """
        found = [
            (rows + first, scores)
            for segment, first in zip(self._segments, self._firsts, strict=True)
            if len(segment.rows)
            for rows, scores in [segment.search(queries, k, ef, num_threads)]
        ]
        if len(found) == 1:
            return found[0]
        labels, scores = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(labels, best, axis=1), np.take_along_axis(scores, best, axis=1)
