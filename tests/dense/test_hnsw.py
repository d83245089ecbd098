import hashlib
import resource
import subprocess
import sys
from pathlib import Path

import hnswlib
import numpy as np
import pytest
from support.tiny_release import unit_vectors

from indexing.dense.exact import exact_search
from indexing.dense.hnsw import build_index, load_graph
from indexing.dense.params import IndexParams
from indexing.errors import DamagedError, DataError, StoreUnavailable
from tests.support.recall import recall_at_k

PARAMS = IndexParams(M=16, ef_construction=100, seed=7)


@pytest.fixture
def built_shard(tmp_path: Path) -> tuple[Path, np.ndarray]:
    vectors = unit_vectors(1500, dim=24)
    build_index(vectors, PARAMS, tmp_path / "shard.hnsw")
    return tmp_path / "shard.hnsw", vectors


def test_two_processes_build_the_same_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", unit_vectors(1000))
    program = (
        "import sys, pathlib, numpy; from indexing.dense.hnsw import *;"
        "build_index(numpy.load(sys.argv[1]), IndexParams(), pathlib.Path(sys.argv[2]))"
    )
    digests = set()
    for name in ("a.hnsw", "b.hnsw"):
        subprocess.run([sys.executable, "-c", program, tmp_path / "vectors.npy", tmp_path / name], check=True)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_plain_hnswlib_loads_the_file_and_gives_the_same_answers(built_shard: tuple[Path, np.ndarray]) -> None:
    path, vectors = built_shard
    plain = hnswlib.Index("ip", vectors.shape[1])
    plain.load_index(str(path))
    plain.set_ef(64)
    plain_labels, distances = plain.knn_query(vectors[:50], k=10, num_threads=1)
    labels, scores = load_graph(path, 24, 1500).search(vectors[:50], 10, 64, 2)
    np.testing.assert_array_equal(labels, plain_labels)
    np.testing.assert_allclose(scores, 1 - distances)
    assert f"{labels.dtype} {scores.dtype}" == "int64 float32"
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_graph_finds_nearly_all_true_neighbours(built_shard: tuple[Path, np.ndarray]) -> None:
    path, vectors = built_shard
    queries = unit_vectors(100, dim=24, seed=1)
    labels, _ = load_graph(path, 24, 1500).search(queries, 10, 100, 2)
    assert recall_at_k(labels, exact_search(vectors, queries, 10)[0]) > 0.95


def test_more_equal_vectors_than_links_still_answer_with_k_items(tmp_path: Path) -> None:
    vectors = np.concatenate([np.repeat(unit_vectors(1), 500, axis=0), unit_vectors(500, seed=1)])
    build_index(vectors, PARAMS, tmp_path / "island.hnsw")
    plain = hnswlib.Index("ip", 16)
    plain.load_index(str(tmp_path / "island.hnsw"))
    with pytest.raises(RuntimeError):  # plain hnswlib gives up: the equal vectors link only to each other
        plain.knn_query(vectors[:100], k=600)
    graph = load_graph(tmp_path / "island.hnsw", 16, 1000)
    labels, scores = graph.search(vectors[:100], 600, 50, 2)
    np.testing.assert_array_equal(labels, exact_search(vectors, vectors[:100], 600)[0])
    assert labels.shape == scores.shape == (100, 600)


@pytest.mark.parametrize(
    "vectors",
    [
        np.empty((0, 4), np.float32),
        np.ones((3, 4), np.float64),
        np.ones(4, np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4), np.inf, np.float32),
    ],
)
def test_vectors_that_cannot_be_indexed_leave_no_file(vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected"):
        build_index(vectors, PARAMS, tmp_path / "shard.hnsw")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="folder missing"):
        build_index(unit_vectors(5), PARAMS, tmp_path / "missing" / "shard.hnsw")


def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))
    try:
        with pytest.raises(StoreUnavailable, match="wrote"):
            build_index(unit_vectors(1000), PARAMS, tmp_path / "shard.hnsw")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dim", "num_items"), [(25, 1500), (12, 1500), (24, 1499), (24, 3000)])
def test_another_dim_or_count_than_the_files_is_refused(
    built_shard: tuple[Path, np.ndarray], dim: int, num_items: int
) -> None:
    with pytest.raises(DamagedError, match="the file says"):
        load_graph(built_shard[0], dim, num_items)


@pytest.mark.parametrize("share", [0, 0.0001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(built_shard: tuple[Path, np.ndarray], share: float) -> None:
    path, _ = built_shard
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedError):
        load_graph(path, 24, 1500)


def test_what_was_inserted_is_found_and_what_was_deleted_is_not(built_shard: tuple[Path, np.ndarray]) -> None:
    path, vectors = built_shard
    new, gone = unit_vectors(120, dim=24, seed=2), np.arange(0, 1500, 10)
    graph = load_graph(path, 24, 1500)
    graph.insert(np.arange(1600, 1720), new)
    graph.delete(gone)
    kept = np.setdiff1d(np.arange(1500), gone)
    np.testing.assert_array_equal(graph.labels, np.concatenate([kept, np.arange(1600, 1720)]))
    everything = np.concatenate([vectors[kept], new])
    np.testing.assert_array_equal(graph.vectors(graph.labels), everything)
    queries = unit_vectors(100, dim=24, seed=3)
    labels, _ = graph.search(queries, 10, 100, 2)
    rows, _ = exact_search(everything, queries, 10)
    assert recall_at_k(labels, graph.labels[rows]) > 0.95
    assert not np.isin(labels, gone).any()
    own, _ = graph.search(new, 1, 100, 2)
    np.testing.assert_array_equal(own[:, 0], np.arange(1600, 1720))


def test_a_changed_graph_that_cannot_reach_k_items_answers_exactly_without_the_deleted(tmp_path: Path) -> None:
    vectors = unit_vectors(60)
    build_index(vectors, PARAMS, tmp_path / "small.hnsw")
    graph = load_graph(tmp_path / "small.hnsw", 16, 60)
    graph.delete(np.arange(50))
    labels, _ = graph.search(vectors, 10, 10, 1)
    np.testing.assert_array_equal(np.sort(labels), np.tile(np.arange(50, 60), (60, 1)))


def test_a_graph_changes_the_same_way_each_time(built_shard: tuple[Path, np.ndarray]) -> None:
    path, _ = built_shard
    found = []
    for _ in range(2):
        graph = load_graph(path, 24, 1500)
        graph.insert(np.arange(1500, 1700), unit_vectors(200, dim=24, seed=2))
        graph.delete(np.arange(0, 300, 7))
        found.append(graph.search(unit_vectors(200, dim=24, seed=3), 10, 20, 2))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
