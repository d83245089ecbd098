"""Hard negatives: in the window, below the margin, and never something that somebody wanted."""

import numpy as np
import pyarrow as pa

from jobs.config.training import NegativesConfig
from jobs.training.encoder.negatives import Mined, Negative, pick, positives_by_query
from jobs.training.encoder.pairs import PAIRS

IDS = [f"item-{number}" for number in range(10)]
SCORES = np.linspace(0.9, 0.45, 10, dtype=np.float32)  # 0.90, 0.85, … 0.45
SETTINGS = NegativesConfig(per_query=3, first_rank=3, last_rank=10, margin=0.1)


def pairs(*rows: tuple[str, str, str]) -> pa.Table:
    columns = {"query": [row[0] for row in rows], "query_group": [row[1] for row in rows]}
    more = {
        "item_id": [row[2] for row in rows],
        "weight": np.ones(len(rows), np.float32),
        "source": ["clicks"] * len(rows),
    }
    return pa.table({**columns, **more}).select(PAIRS.names)


def test_negatives_are_in_the_window_and_below_the_best_known_positive_by_the_margin() -> None:
    found = pick(IDS, SCORES, {"item-1"}, SETTINGS)  # 0.85 less a tenth is 0.765
    assert [(negative.item_id, negative.rank) for negative in found] == [("item-3", 4), ("item-4", 5), ("item-5", 6)]


def test_known_positives_are_never_negatives() -> None:
    found = pick(IDS, SCORES, {"item-1", "item-3", "item-5"}, SETTINGS)
    assert [negative.item_id for negative in found] == ["item-4", "item-6", "item-7"]


def test_the_window_begins_at_its_first_rank() -> None:
    found = pick(IDS, SCORES, {"item-0"}, NegativesConfig(per_query=2, first_rank=6, last_rank=10, margin=0))
    assert [negative.rank for negative in found] == [6, 7]


def test_a_query_that_finds_no_known_positive_gives_no_negatives() -> None:
    assert pick(IDS, SCORES, {"elsewhere"}, SETTINGS) == []


def test_what_another_query_of_the_group_led_to_is_a_positive_too() -> None:
    known = positives_by_query(pairs(("calm", "a", "x"), ("quiet", "a", "y"), ("loud", "b", "z")))
    assert known == {"calm": {"x", "y"}, "quiet": {"x", "y"}, "loud": {"z"}}


def test_rows_of_negatives_follow_the_query_of_each_pair() -> None:
    mined = Mined({"calm": [Negative("c", 3, 0.5), Negative("a", 4, 0.4)], "loud": [Negative("b", 5, 0.3)]})
    items = pa.table({"item_id": ["a", "b", "c"]})
    table = pairs(("loud", "g", "a"), ("calm", "h", "b"), ("other", "i", "c"))
    assert mined.rows(table, items).tolist() == [[1, -1], [2, 0], [-1, -1]]
    assert Mined().rows(table, items).shape == (3, 0)


def test_the_sample_shows_rank_and_score_and_no_cell_is_a_formula() -> None:
    mined = Mined({"calm": [Negative("c", 3, 0.5)], "=1+1": [Negative("@x", 4, -0.25)]})
    lines = mined.sample(5).decode().splitlines()
    assert lines[0] == "query,rank,score,item_id"
    assert sorted(lines[1:]) == ["'=1+1,4,-0.25,'@x", "calm,3,0.5,c"]
