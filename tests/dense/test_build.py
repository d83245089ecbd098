"""Graphs linked by faiss are hnswlib's files: same bytes with any number of threads, served like hnswlib's own."""

from pathlib import Path

import hnswlib
import numpy as np
import pytest
from support.recall import recall_at_k
from support.tiny_release import unit_vectors

from indexing.dense.build import build_graph
from indexing.dense.exact import exact_search
from indexing.dense.hnsw import load_graph
from indexing.dense.load_check import check_loads
from indexing.dense.params import IndexParams
from indexing.errors import DataError, StoreUnavailable

NUM_ITEMS, DIM = 3000, 24
FAISS = IndexParams(M=16, ef_construction=128, builder="faiss")
HNSWLIB = IndexParams(M=16, ef_construction=200)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return unit_vectors(NUM_ITEMS, DIM)


def test_the_bytes_do_not_depend_on_the_number_of_threads(vectors: np.ndarray, tmp_path: Path) -> None:
    files = [tmp_path / str(num_threads) for num_threads in (1, 2, 4)]
    for path in files:
        build_graph(vectors, FAISS, path, int(path.name))
    assert len({path.read_bytes() for path in files}) == 1


def test_the_seed_and_the_parameters_change_the_graph(vectors: np.ndarray, tmp_path: Path) -> None:
    variants = [FAISS, IndexParams(seed=2, ef_construction=128, builder="faiss"), IndexParams(M=8, builder="faiss")]
    for i, params in enumerate(variants):
        build_graph(vectors, params, tmp_path / str(i), 2)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(3)}) == 3


def test_recall_is_not_below_that_of_hnswlib(vectors: np.ndarray, tmp_path: Path) -> None:
    queries = unit_vectors(300, DIM, seed=5)
    truth, _ = exact_search(vectors, queries, 10)
    recall = {}
    for params in (FAISS, HNSWLIB):
        build_graph(vectors, params, tmp_path / "graph", 2)
        labels, _ = load_graph(tmp_path / "graph", DIM, NUM_ITEMS).search(queries, 10, 40, num_threads=2)
        recall[params.builder] = recall_at_k(labels, truth)
    assert recall["faiss"] >= recall[None] - 0.01
    assert recall["faiss"] > 0.9


def test_plain_hnswlib_loads_it_and_writes_the_same_file_back(vectors: np.ndarray, tmp_path: Path) -> None:
    build_graph(vectors, FAISS, tmp_path / "ours", 2)
    index = hnswlib.Index("ip", DIM)
    index.load_index(str(tmp_path / "ours"))
    assert np.array_equal(index.get_items(np.arange(NUM_ITEMS), return_type="numpy"), vectors)
    index.save_index(str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_it_passes_the_load_check_and_takes_deltas_and_tombstones(vectors: np.ndarray, tmp_path: Path) -> None:
    build_graph(vectors[:-500], FAISS, tmp_path / "graph", 2)
    check_loads(tmp_path / "graph", DIM, NUM_ITEMS - 500, "tracks/0")
    graph = load_graph(tmp_path / "graph", DIM, NUM_ITEMS - 500)
    graph.insert(np.arange(NUM_ITEMS - 500, NUM_ITEMS), vectors[-500:])
    graph.delete(np.arange(500))
    labels, scores = graph.search(vectors[500:], 1, 64, num_threads=2)
    assert (labels[:, 0] == np.arange(500, NUM_ITEMS)).mean() > 0.99
    assert scores[:, 0].max() < 1.001


@pytest.mark.parametrize("num_items", [1, 2, 3, 40, 600])
def test_few_and_equal_vectors_are_found(num_items: int, tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)[np.arange(num_items) % 4]
    build_graph(vectors, FAISS, tmp_path / "graph", 2)
    graph = load_graph(tmp_path / "graph", 4, num_items)
    labels, scores = graph.search(vectors[:1], 1, 10, num_threads=1)
    assert scores[0, 0] == pytest.approx(1)
    assert labels[0, 0] % 4 == 0


@pytest.mark.parametrize("bad", [np.zeros((0, 4), np.float32), np.zeros((2, 4)), np.full((2, 4), np.nan, np.float32)])
def test_what_is_not_an_array_of_vectors_is_refused(bad: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^expected "):
        build_graph(bad, FAISS, tmp_path / "graph", 1)


def test_a_missing_folder_is_named_and_nothing_is_left(vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="cannot write the graph: No such file"):
        build_graph(vectors[:10], FAISS, tmp_path / "missing" / "graph", 1)
    assert not list(tmp_path.iterdir())
