"""The gates, and the choice of ef_search: pure numbers in, verdicts out."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.vectors import count_bad_vectors
from jobs.config.load import load_config
from jobs.config.schema import Config
from jobs.quality.choose_ef import Figures, gates_of, pick_ef
from jobs.quality.gates import Gate, at_least, at_most, equal
from jobs.quality.recall import distinct_share, found_by_graph, recall_by_score, self_match, split_halves
from jobs.quality.sample import SLICE_SAMPLES, Sample
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
def test_a_gate_passes_at_its_threshold_and_never_for_nan(gate: Gate, expected: str, holds: bool) -> None:
    assert (gate.expected, gate.holds) == (expected, holds)


NUM_RANDOM = 40
SAMPLE = Sample(
    vectors=np.empty((100, 4), np.float32),
    num_random=NUM_RANDOM,
    slices={"item_type track": np.arange(100) < NUM_RANDOM, "item_type album": np.arange(100) >= NUM_RANDOM},
)


def figures_of(
    recall: tuple[float, float],
    queries: tuple[float, float] | None = None,
    *,
    matches: float = 1,
    shard: float = 1,
    album_recall: float = 1,
    album_matches: float = 1,
) -> Figures:
    """recall@10 on even and on odd queries; albums are no random samples."""
    is_match = np.concatenate(
        [np.arange(NUM_RANDOM) < matches * NUM_RANDOM, np.arange(100 - NUM_RANDOM) < album_matches * (100 - NUM_RANDOM)]
    )
    return Figures(
        recall_of_samples=np.concatenate([np.tile(recall, NUM_RANDOM // 2), np.repeat(album_recall, 100 - NUM_RANDOM)]),
        recall_of_queries=np.tile(queries, 4) if queries else None,
        is_match=is_match,
        worst_shard=("tracks/0", shard),
    )


def config_of(folder: Path) -> Config:
    content = {
        "name": "n",
        "store": "file:///s",
        "workspace": "file:///w",
        "catalogue": {"path": "p", "collections": {"tracks": {"item_types": ["track"]}}},
    }
    (folder / "config.yaml").write_text(json.dumps(content))
    return load_config(str(folder / "config.yaml"))


def pick(folder: Path, **figures: Figures) -> int | None:
    by_ef = {int(name.removeprefix("ef")): of for name, of in figures.items()}
    return pick_ef(config_of(folder), "tracks", SAMPLE, by_ef)


def test_the_smallest_ef_that_reaches_the_target_is_chosen(tmp_path: Path) -> None:
    ef32, ef10, ef16 = (figures_of((recall, recall)) for recall in (0.97, 0.9, 0.96))
    assert pick(tmp_path, ef32=ef32, ef10=ef10, ef16=ef16) == 16


def test_an_ef_must_be_confirmed_on_the_other_half(tmp_path: Path) -> None:
    ef10, ef16, ef32 = (figures_of(recall) for recall in ((1.0, 0.9), (0.9, 1.0), (0.96, 0.96)))
    assert pick(tmp_path, ef10=ef10, ef16=ef16, ef32=ef32) == 32


def test_every_query_set_must_reach_the_target(tmp_path: Path) -> None:
    ef10, ef16 = figures_of((1.0, 1.0), (0.8, 0.8)), figures_of((1.0, 1.0), (0.96, 0.96))
    assert pick(tmp_path, ef10=ef10, ef16=ef16) == 16


@pytest.mark.parametrize(
    "part", [{"matches": 0.9}, {"shard": 0.8}, {"album_recall": 0.85}, {"album_matches": 0.85}], ids=str
)
def test_a_larger_ef_is_chosen_where_one_part_fails_with_a_smaller_one(part: dict[str, float], tmp_path: Path) -> None:
    assert pick(tmp_path, ef10=figures_of((1.0, 1.0), **part), ef16=figures_of((1.0, 1.0))) == 16


def test_no_ef_is_chosen_where_none_reaches_the_target(tmp_path: Path) -> None:
    assert pick(tmp_path, ef10=figures_of((0.5, 0.5)), ef512=figures_of((0.94, 0.96))) is None
    assert pick(tmp_path) is None


def test_a_slice_fails_by_name_with_enough_samples_and_where_it_is_not_the_whole(tmp_path: Path) -> None:
    figures = figures_of((1.0, 1.0), album_recall=0.5, album_matches=0.1)
    failed = [gate for gate in gates_of(config_of(tmp_path), "tracks", SAMPLE, figures) if not gate.holds]
    assert [gate.name for gate in failed] == ["self-match of item_type album", "recall@10 of item_type album"]
    assert {gate.expected for gate in failed} == {"≥ 0.9"}
    few = replace(SAMPLE, slices={"item_type album": np.arange(100) >= 100 - SLICE_SAMPLES + 1})
    assert all(gate.holds for gate in gates_of(config_of(tmp_path), "tracks", few, figures))
    whole = replace(SAMPLE, slices={"item_type track": np.ones(100, bool)})
    assert not any("item_type" in gate.name for gate in gates_of(config_of(tmp_path), "tracks", whole, figures))


@given(st.integers(1, 40))
def test_halves_are_of_one_size_and_hold_every_query_once(size: int) -> None:
    one, other = split_halves(np.arange(size))
    if size == 1:
        assert one.tolist() == other.tolist() == [0]
    else:
        assert abs(len(one) - len(other)) <= 1
        assert sorted([*one, *other]) == list(range(size))


def test_recall_is_the_share_of_true_scores_that_were_found() -> None:
    truth = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    assert recall_by_score(truth, truth).tolist() == [1]
    assert recall_by_score(np.array([[0.9, 0.8, 0.5, 0.4]], np.float32), truth).tolist() == [0.5]
    assert recall_by_score(np.array([[0.1, 0.1, 0.1, 0.1]], np.float32), truth).tolist() == [0]


def test_equal_scores_count_once_and_rounding_is_forgiven() -> None:
    """Items with one text: which of them were found, and how many, is no loss; nor do many of them make up for one."""
    truth = np.array([[0.9, 0.7, 0.7, 0.7]], np.float32)
    assert recall_by_score(np.array([[0.9, 0.7 - 2e-6, 0.5, 0.5]], np.float32), truth).tolist() == [1]
    assert recall_by_score(np.array([[0.7, 0.7, 0.7, 0.7]], np.float32), truth).tolist() == [0.5]
    assert recall_by_score(np.array([[0.9, 0.7 - 1e-4, 0.5, 0.5]], np.float32), truth).tolist() == [0.5]


def test_the_distinct_share_is_of_scores_of_which_one_is_found() -> None:
    scores = np.array([[0.9, 0.7, 0.7, 0.7]] * 3, np.float32)
    is_found = np.array([[1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    assert distinct_share(is_found, scores).tolist() == [1, 0.5, 0]


def test_a_true_score_counts_as_found_wherever_it_is() -> None:
    exact = np.array([[0.9, 0.8, 0.8], [0.7, 0.6, 0.5]], np.float32)
    found = np.array([[0.9, 0.8, 0.1], [0.6, 0.5, 0.4]], np.float32)
    assert found_by_graph(found, exact).tolist() == [[True, True, True], [False, True, True]]


def test_recall_is_reported_query_by_query() -> None:
    truth = np.array([[0.9, 0.8], [0.5, 0.4]], np.float32)
    assert recall_by_score(np.array([[0.9, 0.1], [0.5, 0.4]], np.float32), truth).tolist() == [0.5, 1]


def test_a_vector_matches_itself_where_its_best_hit_is_itself_or_an_equal() -> None:
    scores = np.array([[1.0, 0.2], [0.99, 0.9], [1.0, 1.0], [1 - 1e-6, 0]], np.float32)
    assert self_match(scores).tolist() == [True, False, True, True]


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
