"""What a step sees: pairs, negatives, masks, and how often a candidate is expected."""

import numpy as np
import pyarrow as pa
import pytest
from training.worlds import make_items, make_log, tiny_training

from jobs.config.training import TrainingConfig
from jobs.training.encoder.batches import Steps, unique_texts
from jobs.training.encoder.data import log_pairs

PAIRS = log_pairs(make_log(range(16)))
ITEMS = pa.table({"item_id": [row["item_id"] for row in make_items()], "text": [row["title"] for row in make_items()]})


def make_steps(settings: TrainingConfig, hard: np.ndarray | None = None) -> Steps:
    return Steps(PAIRS, ITEMS, np.empty((PAIRS.num_rows, 0), np.int64) if hard is None else hard, settings)


def test_a_step_is_the_same_whenever_it_is_asked_for() -> None:
    first, again = (make_steps(tiny_training()).step(7) for _ in range(2))
    assert (first.queries, first.candidates) == (again.queries, again.candidates)
    assert make_steps(tiny_training(seed=2)).step(7).queries != first.queries


def test_the_pairs_own_item_is_in_its_column_and_is_known() -> None:
    step = make_steps(tiny_training()).step(0)
    titles: dict[str, set[str]] = {}
    texts = dict(zip(ITEMS["item_id"].to_pylist(), ITEMS["text"].to_pylist(), strict=True))
    for query, item in zip(PAIRS["query"].to_pylist(), PAIRS["item_id"].to_pylist(), strict=True):
        titles.setdefault(query, set()).add(texts[item])
    assert all(text in titles[query] for query, text in zip(step.queries, step.candidates, strict=False))
    assert step.targets.is_positive_PC[:, :16].diagonal().all()


def test_candidates_that_the_query_or_its_group_is_known_for_are_marked() -> None:
    step = make_steps(tiny_training(num_negatives=400)).step(0)
    known = set(zip(PAIRS["query_group"].to_pylist(), PAIRS["item_id"].to_pylist(), strict=True))
    group = dict(zip(PAIRS["query"].to_pylist(), PAIRS["query_group"].to_pylist(), strict=True))
    ids: dict[str, set[str]] = {}
    for item, text in zip(ITEMS["item_id"].to_pylist(), ITEMS["text"].to_pylist(), strict=True):
        ids.setdefault(text, set()).add(item)
    unique = [column for column, text in enumerate(step.candidates) if len(ids[text]) == 1]
    assert step.targets.is_positive_PC[:, unique].sum() > 16
    for row, query in enumerate(step.queries):
        for column in unique:
            (item,) = ids[step.candidates[column]]
            assert step.targets.is_positive_PC[row, column] == ((group[query], item) in known)


def test_the_share_of_mined_negatives_grows_from_none() -> None:
    hard = np.full((PAIRS.num_rows, 2), 399)
    steps = make_steps(tiny_training(steps=11, num_negatives=200, hard_share=0.8), hard)
    shares = [
        np.mean([text == ITEMS["text"][399].as_py() for text in steps.step(number).candidates[16:]])
        for number in (0, 5, 10)
    ]
    assert shares == pytest.approx([0, 0.4, 0.8], abs=0.1)


def test_what_is_expected_of_a_candidate_is_what_comes() -> None:
    """Over many steps, items come as often as `log_expected` says."""
    steps = make_steps(tiny_training(num_negatives=8))
    counts, expected = np.zeros(400), steps.expected + 8 / 400
    place = {text: number for number, text in enumerate(ITEMS["text"].to_pylist())}
    for number in range(1500):
        for text in steps.step(number).candidates:
            counts[place[text]] += 1
    by_text = np.zeros(400)
    for number, text in enumerate(ITEMS["text"].to_pylist()):
        by_text[place[text]] += expected[number]
    assert counts.sum() / 1500 == pytest.approx(expected.sum(), rel=1e-6)
    assert np.corrcoef(counts / 1500, by_text)[0, 1] > 0.95


def test_equal_texts_are_encoded_once() -> None:
    distinct, rows = unique_texts(["b", "a", "b", "c", "a"])
    assert distinct == ["b", "a", "c"]
    assert [distinct[row] for row in rows] == ["b", "a", "b", "c", "a"]
