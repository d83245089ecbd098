"""Builds an HNSW graph with faiss on all threads and writes it as hnswlib's file. The only module that knows faiss.

faiss links without locks, in batches whose result does not depend on the number of threads (its pull request 5486,
after Dobson et al., "Scaling Graph-Based ANNS Algorithms to Billion-Size Datasets", arXiv:2305.04359). So the same
vectors give the same bytes with one thread and with many. It links on 8-bit codes; the file holds the float32 vectors.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np

from indexing.dense.hnsw import HEADER, build_index, check_vectors
from indexing.dense.params import IndexParams
from indexing.errors import StoreUnavailable

BLOCK_ROWS = 1 << 14
"""Records of the lowest layer that are laid out in memory before they are written."""


def build_graph(vectors: np.ndarray, params: IndexParams, path: Path, num_threads: int) -> None:
    """Writes the graph over `vectors`, float32 (num_items, dim), to `path`, which appears whole or not at all.

    Label i is row i. The bytes do not depend on `num_threads`; hnswlib, as `params.builder`, uses one.
    Raises DataError for no rows, another dtype or shape, NaN or infinite values; StoreUnavailable for a full disk.
    """
    if params.builder != "faiss":
        build_index(vectors, params, path)
        return
    check_vectors(vectors)
    index = link(vectors, params, num_threads)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            write_graph(file, vectors, index.hnsw, params)
        temporary.replace(path)
    except OSError as error:
        raise StoreUnavailable(f"{path}: cannot write the graph: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def link(vectors: np.ndarray, params: IndexParams, num_threads: int) -> Any:
    """A faiss index over `vectors`. Keep a reference to it while its `hnsw` is used, which does not keep it alive."""
    faiss.omp_set_num_threads(num_threads)
    index = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, params.M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = params.ef_construction
    index.hnsw.rng = faiss.RandomGenerator(params.seed)
    index.train(vectors)
    index.add(vectors)  # in one call: a second one would link against the frozen graph of the first
    return index


def write_graph(file: BinaryIO, vectors: np.ndarray, graph: Any, params: IndexParams) -> None:
    """hnswlib 0.8.0's format: header; count, links, vector and label of each element; then its upper links.

    https://github.com/nmslib/hnswlib/blob/v0.8.0/hnswlib/hnswalg.h, saveIndex.
    """
    num_items, dim = vectors.shape
    levels = faiss.vector_to_array(graph.levels).astype(np.int64) - 1  # faiss counts the lowest layer as 1
    starts = faiss.vector_to_array(graph.offsets)[:-1].astype(np.int64)
    neighbors = faiss.vector_to_array(graph.neighbors)
    record = np.dtype([("count", "<u4"), ("links", "<u4", 2 * params.M), ("vector", "<f4", dim), ("label", "<u8")])
    label_offset, data_offset = record.fields["label"][1], record.fields["vector"][1]  # type: ignore[index]
    file.write(
        HEADER.pack(
            0,
            num_items,
            num_items,
            record.itemsize,
            label_offset,
            data_offset,
            int(levels.max()),
            graph.entry_point,
            params.M,
            2 * params.M,
            params.M,
            1 / math.log(params.M),
            params.ef_construction,
        )
    )
    for rows in blocks(num_items):
        elements = np.zeros(len(rows), dtype=record)
        elements["count"], elements["links"] = pack_links(neighbors, starts[rows], 2 * params.M)
        elements["vector"], elements["label"] = vectors[rows], rows
        file.write(elements.tobytes())
    for rows in blocks(num_items):
        file.write(upper_links(neighbors, starts[rows], levels[rows], params.M))


def blocks(num_items: int) -> Iterator[np.ndarray]:
    """int64 (at most BLOCK_ROWS,): row numbers, ascending."""
    for start in range(0, num_items, BLOCK_ROWS):
        yield np.arange(start, min(start + BLOCK_ROWS, num_items))


def pack_links(neighbors: np.ndarray, starts: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint32 (num_rows,), uint32 (num_rows, width)): how many links begin at each of `starts`, and the links.

    faiss fills a list from the front and the rest with -1; hnswlib expects zeros there.
    """
    links = neighbors[starts[:, None] + np.arange(width)]
    is_link = links >= 0
    return is_link.sum(axis=1), np.where(is_link, links, 0)


def upper_links(neighbors: np.ndarray, starts: np.ndarray, levels: np.ndarray, M: int) -> bytes:
    """For each row the bytes of its upper layers as uint32, then for each layer from 1 on its count and M links."""
    words = np.where(levels > 0, 1 + levels * (1 + M), 1)
    ends = np.cumsum(words)
    out = np.zeros(ends[-1], dtype="<u4")
    out[ends - words] = 4 * (words - 1)
    for level in range(1, int(levels.max()) + 1):
        rows = np.flatnonzero(levels >= level)
        counts, links = pack_links(neighbors, starts[rows] + 2 * M + (level - 1) * M, M)
        at = (ends - words)[rows] + 1 + (level - 1) * (1 + M)
        out[at] = counts
        out[at[:, None] + 1 + np.arange(M)] = links
    return out.tobytes()
