"""The gates, and the choice of ef_search: pure numbers in, verdicts out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.vectors import count_bad_vectors
from jobs.quality.gates import Gate, at_least, at_most, equal
from jobs.quality.recall import choose_ef, recall_by_score, self_match, split_halves
from jobs.quality.slices import slice_rows


@pytest.mark.parametrize(
    ("gate", "expected", "holds"),
    [
        (at_least("recall", "tracks", 0.95, 0.95), "≥ 0.95", True),
        (at_least("recall", "tracks", 0.9499, 0.95), "≥ 0.95", False),
        (at_least("recall", "tracks", math.nan, 0.95), "≥ 0.95", False),
        (at_most("change", "tracks", 0.2, 0.2), "≤ 0.2", True),
        (at_most("change", "tracks", 0.21, 0.2), "≤ 0.2", False),
        (at_most("change", "tracks", math.nan, 0.2), "≤ 0.2", False),
        (equal("rows", "tracks/0", 7, 7), "= 7", True),
        (equal("rows", "tracks/0", 6, 7), "= 7", False),
    ],
)
def test_a_gate_holds_at_its_threshold_and_never_for_nan(gate: Gate, expected: str, holds: bool) -> None:
    assert (gate.expected, gate.holds) == (expected, holds)


def recalls_of(*pairs: tuple[float, float]) -> list[np.ndarray]:
    """One query set each: its recall on even and on odd queries."""
    return [np.tile(pair, 4) for pair in pairs]


def test_the_smallest_ef_that_reaches_the_target_is_chosen() -> None:
    recalls = {32: recalls_of((0.97, 0.97)), 10: recalls_of((0.9, 0.9)), 16: recalls_of((0.95, 0.95))}
    assert choose_ef(recalls, 0.95) == 16


def test_an_ef_must_be_confirmed_on_the_other_half() -> None:
    recalls = {10: recalls_of((1.0, 0.9)), 16: recalls_of((0.9, 1.0)), 32: recalls_of((0.96, 0.96))}
    assert choose_ef(recalls, 0.95) == 32


def test_every_query_set_must_reach_the_target() -> None:
    recalls = {10: recalls_of((1.0, 1.0), (0.8, 0.8)), 16: recalls_of((1.0, 1.0), (0.96, 0.95))}
    assert choose_ef(recalls, 0.95) == 16


def test_no_ef_is_chosen_where_none_reaches_the_target() -> None:
    assert choose_ef({10: recalls_of((0.5, 0.5)), 512: recalls_of((0.99, 0.99))}, 1.0) is None
    assert choose_ef({}, 0.5) is None


@given(st.integers(1, 40))
def test_halves_are_of_one_size_and_hold_every_query_once(size: int) -> None:
    one, other = split_halves(np.arange(size))
    if size == 1:
        assert one.tolist() == other.tolist() == [0]
    else:
        assert abs(len(one) - len(other)) <= 1
        assert sorted([*one, *other]) == list(range(size))


def test_recall_counts_results_as_good_as_the_last_true_neighbour() -> None:
    truth = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    assert recall_by_score(truth, truth).tolist() == [1]
    assert recall_by_score(np.array([[0.9, 0.8, 0.5, 0.4]], np.float32), truth).tolist() == [0.5]
    assert recall_by_score(np.array([[0.1, 0.1, 0.1, 0.1]], np.float32), truth).tolist() == [0]


def test_equal_scores_are_interchangeable_and_rounding_is_forgiven() -> None:
    """Two items with one text: which of them was found is no loss."""
    truth = np.array([[0.9, 0.7, 0.7, 0.7]], np.float32)
    assert recall_by_score(np.array([[0.9, 0.7, 0.7, 0.7 - 2e-6]], np.float32), truth).tolist() == [1]
    assert recall_by_score(np.array([[0.9, 0.7, 0.7, 0.7 - 1e-4]], np.float32), truth).tolist() == [0.75]


def test_recall_is_told_query_by_query() -> None:
    truth = np.array([[0.9, 0.8], [0.5, 0.4]], np.float32)
    assert recall_by_score(np.array([[0.9, 0.1], [0.5, 0.4]], np.float32), truth).tolist() == [0.5, 1]


def test_self_match_is_the_share_of_items_that_find_themselves_or_an_equal() -> None:
    scores = np.array([[1.0, 0.2], [0.99, 0.9], [1.0, 1.0], [1 - 1e-6, 0]], np.float32)
    assert self_match(scores, np.ones(4, np.float32)) == 0.75


def test_bad_vectors_are_counted_by_kind() -> None:
    vectors = np.eye(6, 8, dtype=np.float32)
    vectors[0, 3], vectors[1, 1] = np.nan, np.inf
    vectors[2] *= 1.01
    vectors[3] = 0
    vectors[4] *= 1.0001  # what float16 does to a norm
    assert count_bad_vectors(vectors) == (2, 2)


def test_slices_are_types_languages_and_the_most_popular_fifth_where_they_are_large_enough() -> None:
    item_types = ["track"] * 60 + ["album"] * 40 + ["show"] * 5
    languages = ["en"] * 50 + [None] * 30 + ["de"] * 25
    popularity = np.array([*range(100), *[np.nan] * 5], float)
    slices = slice_rows(item_types, languages, popularity)
    assert {name: np.flatnonzero(rows).tolist() for name, rows in slices.items()} == {
        "item_type album": list(range(60, 100)),
        "item_type track": list(range(60)),
        "language de": list(range(80, 105)),
        "language en": list(range(50)),
        "popularity head": list(range(80, 100)),
        "popularity tail": list(range(80)),
    }


def test_items_without_popularity_have_no_head_and_tail() -> None:
    assert slice_rows(["track"] * 30, [None] * 30, np.full(30, np.nan)).keys() == {"item_type track"}
