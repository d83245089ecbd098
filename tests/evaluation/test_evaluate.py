"""Slices of an evaluation, and the general set, which shows what training has cost."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.evaluation.evaluate import compare, item_slices, measure_general, measure_slices
from jobs.evaluation.judgements import Judgements, pick_general
from jobs.evaluation.metrics import Ranking, measure

NUM = 24
IDS = [f"item-{number:02}" for number in range(NUM)]
ITEMS = pa.table(
    {
        "item_id": IDS,
        "item_type": ["track"] * 20 + ["show"] * 4,
        "popularity": pa.array([float(number) for number in range(20)] + [None] * 4, pa.float32()),
    }
)


def judgements() -> Judgements:
    """Query q wants items q and q + 1."""
    return Judgements(
        texts=[f"query {row}" for row in range(NUM)],
        groups=[f"group {row // 2}" for row in range(NUM)],
        kinds=["title", "description"] * (NUM // 2),
        relevant={str(row): {IDS[row], IDS[(row + 1) % NUM]} for row in range(NUM)},
        items=ITEMS,
        num_unknown=0,
        general=pa.table({}),
    )


def ranking(first: int) -> Ranking:
    """Each query finds its own item at rank `first`, from 0, after wrong ones."""
    ids = np.array([[f"wrong-{rank}" for rank in range(10)] for _ in range(NUM)], object)
    ids[:, first] = IDS
    return Ranking(queries=[str(row) for row in range(NUM)], item_ids=ids)


def test_items_are_sliced_by_what_training_saw_popularity_and_type() -> None:
    slices = item_slices(ITEMS, {"item-00", "item-23", "elsewhere"})
    assert slices["seen in training"] == {"item-00", "item-23"}
    assert slices["unseen in training"] == set(IDS[1:23])
    assert slices["popularity head"] == set(IDS[16:20])
    assert slices["popularity tail"] == set(IDS[:16])
    assert slices["item type show"] == set(IDS[20:])
    assert "seen in training" not in item_slices(ITEMS, None)


def test_a_kind_of_query_is_the_mean_of_its_own_queries() -> None:
    wide = Judgements(**{**vars(judgements()), "kinds": ["title"] * 22 + ["description"] * 2})
    found = measure_slices(ranking(0), measure(ranking(0), wide.relevant), wide, None)
    assert np.isfinite(found["query kind title"]["hit@10"]).sum() == 22
    assert "query kind description" not in found, "too few queries to tell"


def test_differences_are_those_of_the_same_query() -> None:
    rankers = {
        name: {"exact": measure(ranking(first), judgements().relevant)} for name, first in (("new", 0), ("old", 1))
    }

    report = compare(judgements(), rankers, seed=1)
    found = report.differences["old"]["exact"]["MRR@10"]
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert report.rankers["old"]["exact"]["MRR@10"] == 0.5


def test_the_general_set_is_the_same_described_items_each_time() -> None:
    texts = ["a text", "", None, "   ", "more text"] * 300
    items = pa.table({"item_id": [f"id-{n}" for n in range(1500)], "title": ["t"] * 1500, "description": texts})
    found = pick_general(items)
    assert found.num_rows == 600 and set(found["description"].to_pylist()) == {"a text", "more text"}
    shuffled = items.take(pa.array(np.random.default_rng(1).permutation(1500)))
    assert pick_general(shuffled).equals(found)
    assert pick_general(items.slice(0, 0)).num_rows == 0


def test_a_title_is_to_find_its_own_text() -> None:
    rows = np.array([[0, 1, 2], [0, 1, 2], [1, 0, 2]])
    assert measure_general(rows)["MRR@10"].tolist() == pytest.approx([1, 1 / 2, 1 / 3])
