"""Hard negatives: in the window, below the margin, and never something that somebody wanted."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from jobs.config.training import NegativesConfig
from jobs.quality.best_hits import IDS, BestHits
from jobs.training.encoder import negatives
from jobs.training.encoder.negatives import Mined, choose, known_hits
from jobs.training.encoder.pairs import PAIRS

ITEMS = [f"item-{number}" for number in range(10)]
SCORES = np.linspace(0.9, 0.45, 10, dtype=np.float32)  # 0.90, 0.85, … 0.45
SETTINGS = NegativesConfig(per_query=3, first_rank=3, last_rank=10, margin=0.1)
Negative = tuple[str, int, float]
"""Item, rank, score."""


def pairs(*rows: tuple[str, str, str]) -> pa.Table:
    """(query, group, item) each."""
    columns = {"query": [row[0] for row in rows], "query_group": [row[1] for row in rows]}
    more = {
        "item_id": [row[2] for row in rows],
        "weight": np.ones(len(rows), np.float32),
        "source": ["clicks"] * len(rows),
    }
    return pa.table({**columns, **more}).select(PAIRS.names).cast(PAIRS)


def rankings(ids: list[str], items: np.ndarray, scores: np.ndarray) -> BestHits:
    best = BestHits(len(items), items.shape[1])
    best.ids, best.items, best.scores = pa.array(ids, IDS), items.astype(np.int32), scores
    return best


def mine(table: pa.Table, best: BestHits, settings: NegativesConfig) -> Mined:
    """As the function does it once the queries are searched, in order of their texts."""
    queries = pa.array(sorted(set(table["query"].to_pylist())), pa.string())
    return choose(queries, best, known_hits(queries, best, table), settings)


def by_query(mined: Mined) -> dict[str, list[Negative]]:
    found = {}
    for number, query in enumerate(mined.queries.to_pylist()):
        has = mined.items[number] >= 0
        ids = mined.ids.take(pa.array(mined.items[number, has])).to_pylist()
        if ids:
            found[query] = list(
                zip(ids, mined.ranks[number, has].tolist(), mined.scores[number, has].tolist(), strict=True)
            )
    return found


def one_ranking(known: list[str], settings: NegativesConfig = SETTINGS) -> list[tuple[str, int]]:
    """(item, rank) of the negatives of a query that finds ITEMS with SCORES."""
    best = rankings(ITEMS, np.arange(10)[None], SCORES[None])
    found = by_query(mine(pairs(*(("calm", "g", item) for item in known)), best, settings))
    return [(item, rank) for item, rank, _ in found.get("calm", [])]


def test_negatives_are_in_the_window_and_below_the_best_known_positive_by_the_margin() -> None:
    assert one_ranking(["item-1"]) == [("item-3", 4), ("item-4", 5), ("item-5", 6)]  # 0.85 less a tenth is 0.765


def test_known_positives_are_never_negatives() -> None:
    assert one_ranking(["item-1", "item-3", "item-5"]) == [("item-4", 5), ("item-6", 7), ("item-7", 8)]


def test_the_window_begins_at_its_first_rank() -> None:
    settings = NegativesConfig(per_query=2, first_rank=6, last_rank=10, margin=0)
    assert one_ranking(["item-0"], settings) == [("item-5", 6), ("item-6", 7)]


def test_a_query_that_finds_no_known_positive_gives_no_negatives() -> None:
    assert one_ranking(["elsewhere"]) == []


def test_what_another_query_of_the_group_led_to_is_a_positive_too() -> None:
    table = pairs(("calm", "a", "x"), ("quiet", "a", "y"), ("loud", "b", "z"))
    best = rankings(["x", "y", "z"], np.tile(np.arange(3), (3, 1)), np.ones((3, 3), np.float32))
    is_known = known_hits(pa.array(["calm", "loud", "quiet"]), best, table)
    assert is_known.tolist() == [[True, True, False], [False, False, True], [True, True, False]]


# --- against the rule as one would write it down, query by query ---


def plain_mine(table: pa.Table, best: BestHits, settings: NegativesConfig) -> dict[str, list[Negative]]:
    groups: dict[str, set[str]] = defaultdict(set)
    queries: dict[str, set[str]] = defaultdict(set)
    for row in table.to_pylist():
        groups[row["query_group"]].add(row["item_id"])
        queries[row["query"]].add(row["query_group"])
    mined = {}
    for query, ids, scores in zip(sorted(queries), best.item_ids.tolist(), best.scores.tolist(), strict=True):
        known = set().union(*(groups[group] for group in queries[query]))
        found = plain_choose(list(zip(ids, range(1, len(ids) + 1), scores, strict=True)), known, settings)
        if found:
            mined[query] = found
    return mined


def plain_choose(ranking: list[Negative], known: set[str], settings: NegativesConfig) -> list[Negative]:
    best = next((score for item, _, score in ranking if item in known), None)
    if best is None:
        return []
    return [
        (item, rank, score)
        for item, rank, score in ranking
        if rank >= settings.first_rank and item not in known and score <= best * (1 - settings.margin)
    ][: settings.per_query]


@pytest.mark.parametrize("seed", range(40))
def test_arrays_find_what_the_rule_finds_query_by_query(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "SEARCHES_PER_BLOCK", 7)
    rng = np.random.default_rng(seed)
    num_rows, num_queries, num_items = rng.integers(1, [60, 15, 40])
    ids = [f"i{number}" for number in rng.permutation(num_items)]
    columns = (
        rng.integers(num_queries, size=num_rows),
        rng.integers(8, size=num_rows),
        rng.integers(60, size=num_rows),
    )
    table = pairs(*((f"q{query}", f"g{group}", f"i{item}") for query, group, item in zip(*columns, strict=True)))
    num_found = len(set(table["query"].to_pylist()))
    width = int(rng.integers(1, num_items + 1))
    items = np.array([rng.permutation(num_items)[:width] for _ in range(num_found)])
    values = np.array([-0.5, -0.1, 0, 0.3, 0.5, 0.54, 0.6, 0.9], np.float32)  # few, so that many tie
    scores = -np.sort(-rng.choice(values, items.shape), axis=1)
    first = int(rng.integers(1, 6))
    settings = NegativesConfig(
        per_query=int(rng.integers(1, 6)), first_rank=first, last_rank=50, margin=float(rng.choice([0, 0.1, 0.4]))
    )
    best = rankings(ids, items, scores)
    assert by_query(mine(table, best, settings)) == plain_mine(table, best, settings)


# --- what becomes of them ---

MINED = Mined(
    queries=pa.array(["=1+1", "calm", "loud", "none"]),
    ids=pa.array(["@x", "b", "c", "a"]),
    items=np.array([[0, -1], [2, 3], [1, -1], [-1, -1]], np.int32),
    ranks=np.array([[4, 0], [3, 4], [5, 0], [0, 0]], np.int32),
    scores=np.array([[-0.25, 0], [0.5, 0.4], [0.3, 0], [0, 0]], np.float32),
)


def test_rows_of_negatives_follow_the_query_of_each_pair() -> None:
    items = pa.table({"item_id": ["a", "b", "c"]})
    table = pairs(("loud", "g", "a"), ("calm", "h", "b"), ("other", "i", "c"), ("=1+1", "j", "c"))
    rows = MINED.rows(table, items)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[1, -1], [2, 0], [-1, -1], [-1, -1]], "@x is not in the catalogue"
    assert Mined().rows(table, items).shape == (4, 0)


def test_the_sample_shows_rank_and_score_and_no_cell_is_a_formula() -> None:
    lines = MINED.sample(5).decode().splitlines()
    assert lines[0] == "query,rank,score,item_id"
    assert sorted(lines[1:]) == ["'=1+1,4,-0.25,'@x", "calm,3,0.5,c", "calm,4,0.4,a", "loud,5,0.3,b"]
