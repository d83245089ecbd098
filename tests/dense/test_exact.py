import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from indexing.dense.exact import exact_search, merge_top_k


def naive_search(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ vectors.T
    labels = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return labels, np.take_along_axis(scores, labels, axis=1)


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Vectors of few small integers, so that many scores tie and float32 sums are exact in any order."""
    num_items, num_queries, dim = (draw(st.integers(1, high)) for high in (40, 5, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vectors = rng.integers(-1, 2, (num_items + num_queries, dim)).astype(np.float32)
    return vectors[:num_items], vectors[num_items:], draw(st.integers(1, 45)), draw(st.integers(1, 45))


@given(searches())
def test_blocks_of_any_size_give_what_a_full_sort_gives(case: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    vectors, queries, k, block_rows = case
    labels, scores = exact_search(vectors, queries, k, block_rows)
    expected_labels, expected_scores = naive_search(vectors, queries, k)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(scores, expected_scores)
    assert f"{labels.dtype} {scores.dtype}" == "int64 float32"


@given(searches(), st.integers(0, 40))
@settings(max_examples=50)
def test_merging_two_parts_in_either_order_gives_the_whole(
    case: tuple[np.ndarray, np.ndarray, int, int], cut: int
) -> None:
    vectors, queries, k, _ = case
    first, second = exact_search(vectors[:cut], queries, k), exact_search(vectors[cut:], queries, k)
    second = (second[0] + cut, second[1])
    whole = exact_search(vectors, queries, k)
    for merged in (merge_top_k(*first, *second, k), merge_top_k(*second, *first, k)):
        if cut < len(vectors):
            np.testing.assert_array_equal(merged[0], whole[0])
            np.testing.assert_array_equal(merged[1], whole[1])
