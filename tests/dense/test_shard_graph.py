"""A shard's graphs searched as one: rows of equal vectors share a node, and every item is found all the same."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_release import PARAMS, unit_vectors

from indexing.dense.exact import exact_search
from indexing.dense.hnsw import build_index, load_graph
from indexing.dense.shard_graph import Segment, ShardGraph, first_rows, node_numbers

DIM = 8
VECTORS = unit_vectors(12, DIM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def make_segment(folder: Path, numbers: list[int], is_live: list[bool], ids: list[str]) -> Segment:
    """Rows whose vectors are those of VECTORS with these numbers."""
    nodes = node_numbers(pa.array(numbers))
    build_index(VECTORS[np.array(numbers)[first_rows(nodes)]], PARAMS, folder / "x.hnsw")
    graph = load_graph(folder / "x.hnsw", DIM, nodes.max() + 1)
    return Segment(graph, np.array(is_live), nodes if nodes.max() + 1 < len(nodes) else None, pa.array(ids))


Rows = list[tuple[int, bool]]
segments = st.lists(
    st.lists(st.tuples(st.integers(0, 11), st.booleans()), min_size=1, max_size=30), min_size=1, max_size=3
).filter(lambda found: any(is_live for rows in found for _, is_live in rows))


@given(segments, st.integers(1, 40))
def test_a_search_finds_the_best_rows_whichever_share_a_node(folder: Path, parts: list[Rows], k: int) -> None:
    rows = [row for part in parts for row in part]
    ids = [f"{number * 7919 % 97:02}" for number in range(len(rows))]
    made, first = [], 0
    for part in parts:
        made.append(make_segment(folder, *map(list, zip(*part, strict=True)), ids[first : first + len(part)]))
        first += len(part)
    shard = ShardGraph(made, [len(part) for part in parts])
    live = np.array([label for label, (_, is_live) in enumerate(rows) if is_live])
    vectors = VECTORS[[number for number, _ in rows]]
    np.testing.assert_array_equal(shard.labels, live)
    np.testing.assert_array_equal(shard.vectors(np.arange(len(rows))), vectors)
    k = min(k, len(live))
    labels, scores = shard.search(VECTORS[:4], k, 50, 1)
    _, expected = exact_search(vectors[live], VECTORS[:4], k)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    for of_query, query, their_scores in zip(labels, VECTORS[:4], scores, strict=True):
        assert len(set(of_query.tolist())) == k and set(of_query.tolist()) <= set(live.tolist())
        np.testing.assert_allclose(vectors[of_query] @ query, their_scores, atol=1e-5)


def test_rows_that_share_a_node_come_in_the_order_of_their_ids(folder: Path) -> None:
    segment = make_segment(folder, [3, 1, 3, 3, 2], [True] * 5, ["d", "x", "b", "c", "y"])
    assert segment.search(VECTORS[3:4], 2, 50, 1)[0].tolist() == [[2, 3]]
    assert segment.search(VECTORS[3:4], 5, 50, 1)[0][0, :3].tolist() == [2, 3, 0]


def test_nodes_are_numbered_in_the_order_of_their_first_rows() -> None:
    nodes = node_numbers(pa.array([b"c", b"a", b"c", b"b", b"a"], pa.binary(1)))
    assert nodes.tolist() == [0, 1, 0, 2, 1]
    assert first_rows(nodes).tolist() == [0, 1, 3]
