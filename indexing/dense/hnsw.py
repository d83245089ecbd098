"""One HNSW shard: build, load, search. The only module that knows hnswlib (0.8.0).

The file is hnswlib's own, so plain hnswlib loads it: `hnswlib.Index("ip", dim).load_index(path)`; label = row number.
One thread and a fixed seed give the same bytes for the same vectors. Two threads do not (measured), and another CPU
family might not: its SIMD width changes the last bit of a distance.
Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using HNSW graphs", arXiv:1603.09320.
"""

import struct
import uuid
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from indexing.dense.exact import exact_search
from indexing.dense.params import IndexParams
from indexing.errors import DamagedError, DataError, StoreUnavailable

# offset_level0, max_elements, count, bytes_per_element, label_offset, data_offset, max_level, entry_point,
# maxM, maxM0, M, mult, ef_construction
HEADER = struct.Struct("=6QiI3QdQ")
LINK_BYTES = 4
FLOAT_BYTES = 4
UNREACHABLE_BLOCK = 64
SPARE = 2
"""Results beyond the expected number of deleted ones that a search asks for."""


def build_index(vectors: np.ndarray, params: IndexParams, path: Path) -> None:
    """Writes the graph over `vectors`, float32 (num_items, dim), to `path`, which appears whole or not at all.

    Label i is row i. One thread, so that the same vectors give the same bytes.
    Raises DataError for no rows, another dtype or shape, NaN or infinite values; StoreUnavailable for a full disk.
    """
    check_vectors(vectors)
    num_items, dim = vectors.shape
    index = hnswlib.Index("ip", dim)
    index.init_index(num_items, M=params.M, ef_construction=params.ef_construction, random_seed=params.seed)
    index.add_items(vectors, np.arange(num_items), num_threads=1)
    _save_index(index, path)


def check_vectors(vectors: np.ndarray) -> None:
    """Raises DataError unless `vectors` is float32 (num_items ≥ 1, dim ≥ 1) and finite."""
    if vectors.ndim != 2 or vectors.dtype != np.float32 or 0 in vectors.shape:
        raise DataError(
            f"expected float32 vectors (num_items ≥ 1, dim ≥ 1) to index, got {vectors.dtype} {vectors.shape}"
        )
    if not np.isfinite(vectors).all():
        raise DataError("expected finite vectors to index, got NaN or infinite values")


def _save_index(index: Any, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        index.save_index(str(temporary))
        # hnswlib ignores failed writes, so a full disk or a missing folder would go unnoticed.
        size_bytes = temporary.stat().st_size if temporary.exists() else 0
        if size_bytes != index.index_file_size():
            raise StoreUnavailable(
                f"{path}: expected to write {index.index_file_size()} bytes, wrote {size_bytes}: "
                "is the disk full, or the folder missing or read-only?"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Graph:
    """A graph in memory. Items added after its file was built are inserted, and deleted ones are skipped, in memory
    only: the file never changes. Once it is complete, any number of threads may search it.
    """

    def __init__(self, index: Any, num_items: int) -> None:
        self._index = index
        self._is_live = np.ones(num_items, dtype=bool)  # by label

    @property
    def labels(self) -> np.ndarray:
        """int64 (num_items,), ascending: the items that a search can find."""
        return np.flatnonzero(self._is_live)

    def insert(self, labels: np.ndarray, vectors: np.ndarray) -> None:
        """Adds `vectors`, float32 (num_rows, dim), under new labels; one thread, so that the result repeats."""
        if len(labels):
            self._index.resize_index(self._index.get_current_count() + len(labels))
            self._index.add_items(vectors, labels, num_threads=1)
            is_live = np.zeros(max(len(self._is_live), labels.max() + 1), dtype=bool)
            is_live[: len(self._is_live)] = self._is_live
            is_live[labels] = True
            self._is_live = is_live

    def delete(self, labels: np.ndarray) -> None:
        """Searches no longer return these labels; the graph is still traversed through them."""
        self._is_live[labels] = False

    def vectors(self, labels: np.ndarray) -> np.ndarray:
        """float32 (num_labels, dim)."""
        return np.asarray(self._index.get_items(labels), dtype=np.float32)

    def search(self, queries: np.ndarray, k: int, ef: int, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The approximate k best of each query: labels int64 (num_queries, k), inner products float32, best first.

        `queries` is float32 (num_queries, dim); k must not exceed the number of items; hnswlib uses max(ef, k).
        """
        self._index.set_ef(ef)
        num_rows = self._index.get_current_count()
        num_deleted = num_rows - np.count_nonzero(self._is_live)
        # hnswlib can skip deleted items itself, at 4/5 of the queries/s (measured): it looks up each one it visits.
        num_wanted = max(ef, k + 2 * k * num_deleted // num_rows + SPARE) if num_deleted else k
        return self._find_live(queries, k, min(num_rows, num_wanted), num_threads)

    def _find_live(
        self, queries: np.ndarray, k: int, num_wanted: int, num_threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best live ones of the `num_wanted` best; queries with fewer live ones among them search wider.

        ef is left unchanged, since other threads search too; hnswlib uses at least `num_wanted`.
        """
        try:
            labels, distances = self._index.knn_query(queries, k=num_wanted, num_threads=num_threads)
        except RuntimeError:
            return self._search_unreachable(queries, k, num_wanted, num_threads)
        labels, scores = labels.astype(np.int64), 1 - distances
        if num_wanted == k:
            return labels, scores
        is_live = self._is_live[labels]
        first = np.argsort(~is_live, axis=1, kind="stable")[:, :k]
        labels, scores = np.take_along_axis(labels, first, axis=1), np.take_along_axis(scores, first, axis=1)
        short = np.flatnonzero(is_live.sum(axis=1) < k)
        if len(short):
            wider = min(self._index.get_current_count(), 2 * num_wanted)
            labels[short], scores[short] = self._find_live(queries[short], k, wider, num_threads)
        return labels, scores

    def _search_unreachable(
        self, queries: np.ndarray, k: int, num_wanted: int, num_threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact, where the graph reaches fewer than k items, as in an island of more than 2 M equal vectors."""
        if len(queries) <= UNREACHABLE_BLOCK:
            labels = self.labels
            rows, scores = exact_search(self.vectors(labels), queries, k)
            return labels[rows], scores
        halves = [self._find_live(half, k, num_wanted, num_threads) for half in np.array_split(queries, 2)]
        return np.concatenate([labels for labels, _ in halves]), np.concatenate([scores for _, scores in halves])


def load_graph(path: Path, dim: int, num_items: int) -> Graph:
    """The graph in the file at `path`. Check the file's digest first: hnswlib crashes on many altered files.

    Raises FileNotFoundError, and DamagedError where the file's header is not that of a graph of `num_items` × `dim`, or
    it doesn't load.
    """
    _check_header(path, dim, num_items)
    index = hnswlib.Index("ip", dim)
    try:
        index.load_index(str(path))
    except RuntimeError as error:
        path.stat()  # raises FileNotFoundError where it was deleted meanwhile
        raise DamagedError(f"{path}: hnswlib refuses the file: {error}") from error
    if index.get_current_count() != num_items:
        raise DamagedError(f"{path}: expected {num_items} items, got {index.get_current_count()}")
    return Graph(index, num_items)


def _check_header(path: Path, dim: int, num_items: int) -> None:
    """hnswlib loads a file of another dim without an error and reads past its vectors: compare what the file says."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        raise DamagedError(f"{path}: expected an HNSW file of at least {HEADER.size} bytes, got {size_bytes}")
    _, _, count, element_bytes, label_offset, data_offset, *_ = HEADER.unpack(head)
    if count != num_items:
        raise DamagedError(f"{path}: expected {num_items} items, the file says {count}")
    if label_offset - data_offset != dim * FLOAT_BYTES:
        raise DamagedError(f"{path}: expected dim {dim}, the file says {(label_offset - data_offset) / FLOAT_BYTES:g}")
    smallest = HEADER.size + count * (element_bytes + LINK_BYTES)
    if size_bytes < smallest:
        raise DamagedError(f"{path}: expected at least {smallest} bytes for {count} items, got {size_bytes}")
