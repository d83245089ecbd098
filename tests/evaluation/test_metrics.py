import math

import numpy as np
import pytest

from jobs.evaluation import metrics as ranking_module
from jobs.evaluation.metrics import METRICS, Ranking, measure, paired_bootstrap, slice_relevant


def make_ranking(rows: dict[str, list[str]], k: int) -> Ranking:
    item_ids = np.full((len(rows), k), None, dtype=object)
    for row, items in enumerate(rows.values()):
        item_ids[row, : len(items)] = items
    return Ranking(queries=list(rows), item_ids=item_ids)


def test_metrics_are_those_computed_by_hand() -> None:
    # Relevant at ranks 2 and 12; two of four are never found.
    items = ["x0", "a", *(f"x{rank}" for rank in range(2, 11)), "b", "x12"]
    values = measure(make_ranking({"q": items}, k=100), {"q": ["a", "b", "c", "d"]})
    ideal = sum(1 / math.log2(rank + 1) for rank in (1, 2, 3, 4))
    assert values["nDCG@10"] == pytest.approx([1 / math.log2(3) / ideal])
    assert values["MRR@10"].tolist() == [0.5]
    assert values["hit@10"].tolist() == [1]
    assert values["recall@10"].tolist() == [0.25]
    assert values["recall@30"].tolist() == values["recall@100"].tolist() == [0.5]


def test_ideal_of_ndcg_is_cut_at_ten_and_recall_is_not() -> None:
    items = [f"i{rank}" for rank in range(10)]
    values = measure(make_ranking({"q": items}, k=10), {"q": [*items, *(f"more{number}" for number in range(30))]})
    assert values["nDCG@10"] == pytest.approx([1.0])
    assert values["recall@10"] == pytest.approx([0.25])


def test_a_relevant_item_after_rank_ten_gains_nothing_at_ten() -> None:
    items = [*(f"x{rank}" for rank in range(10)), "a"]
    values = measure(make_ranking({"q": items}, k=11), {"q": ["a"]})
    assert [values[name].item() for name in METRICS] == [0, 0, 0, 0, 1, 1]


def test_order_of_ids_never_reorders_a_ranking() -> None:
    for items in (["a", "b", "c"], ["c", "b", "a"]):
        assert measure(make_ranking({"q": items}, k=3), {"q": ["b"]})["MRR@10"].tolist() == [0.5]


def test_query_without_relevant_items_is_nan_and_one_without_hits_is_zero() -> None:
    ranking = make_ranking({"unjudged": ["a"], "empty": ["a"], "nothing found": [], "found": ["a"]}, k=2)
    values = measure(ranking, {"empty": [], "nothing found": ["a"], "found": ["a"]})
    for name in METRICS:
        np.testing.assert_array_equal(values[name], [np.nan, np.nan, 0, 1])


def test_weights_do_not_matter() -> None:
    ranking = make_ranking({"q": ["a", "b"]}, k=2)
    weighted, plain = measure(ranking, {"q": {"a": 0.2, "b": 7.0}}), measure(ranking, {"q": ["a", "b"]})
    assert weighted == plain == {name: [1.0] for name in METRICS}


def test_two_rows_of_the_same_query_are_measured_apart() -> None:
    ranking = Ranking(queries=["q", "q"], item_ids=np.array([["a", "b"], ["b", "a"]], dtype=object))
    assert measure(ranking, {"q": ["a"]})["MRR@10"].tolist() == [1, 0.5]


def test_values_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = {f"q{number}": [f"i{item}" for item in rng.permutation(40)[:20]] for number in range(11)}
    relevant = {query: {f"i{item}" for item in rng.integers(40, size=6)} for query in rows}
    whole = measure(make_ranking(rows, k=20), relevant)
    monkeypatch.setattr(ranking_module, "QUERIES_PER_BLOCK", 3)
    blocks = measure(make_ranking(rows, k=20), relevant)
    assert len(set(whole["nDCG@10"])) > 5
    for name in METRICS:
        np.testing.assert_array_equal(blocks[name], whole[name])


def test_rows_of_another_number_than_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected item_ids \(2, k\), got \(1, 1\)"):
        Ranking(queries=["a", "b"], item_ids=np.array([["x"]], dtype=object))


def test_a_slice_leaves_out_only_relevant_items_outside_of_it() -> None:
    ranking = make_ranking({"q": ["out", "wrong", "in", "wrong too"], "unjudged": ["out"]}, k=4)
    sliced, relevant = slice_relevant(ranking, {"q": ["out", "in", "missed"]}, keep={"in", "missed", "wrong too"})
    assert sliced.item_ids.tolist() == [["wrong", "in", "wrong too", None], ["out", None, None, None]]
    assert relevant == {"q": {"in", "missed"}}
    values = measure(sliced, relevant)
    assert values["MRR@10"][0] == values["recall@10"][0] == 0.5


def test_query_whose_relevant_items_are_all_outside_a_slice_is_not_measured() -> None:
    sliced, relevant = slice_relevant(make_ranking({"q": ["a"]}, k=1), {"q": ["a"]}, keep=set())
    assert np.isnan(measure(sliced, relevant)["hit@10"]).all()


def test_interval_of_two_groups_is_that_of_the_four_possible_draws() -> None:
    # Group a: three queries, difference 1; b: one query, -1. Draws aa, ab, ba, bb have the means 1, 0.5, 0.5, -1.
    new, old, groups = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0]), ["a", "a", "a", "b"]
    wide = paired_bootstrap(new, old, groups, num_samples=2_000)
    assert (wide.mean, wide.low, wide.high) == (0.5, -1, 1)
    narrow = paired_bootstrap(new, old, groups, num_samples=2_000, level=0.4)  # both halves are inside its quantiles
    assert (narrow.mean, narrow.low, narrow.high) == (0.5, 0.5, 0.5)


def test_queries_that_repeat_their_group_do_not_narrow_the_interval() -> None:
    difference = np.random.default_rng(0).normal(size=30)
    names = [f"g{number}" for number in range(30)]
    once = paired_bootstrap(difference, np.zeros(30), names)
    repeated = paired_bootstrap(np.repeat(difference, 20), np.zeros(600), list(np.repeat(names, 20)))
    as_if_independent = paired_bootstrap(
        np.repeat(difference, 20), np.zeros(600), [str(number) for number in range(600)]
    )
    assert repeated.high - repeated.low == pytest.approx(once.high - once.low)
    assert as_if_independent.high - as_if_independent.low < 0.4 * (once.high - once.low)


def test_interval_has_the_width_that_theory_gives() -> None:
    difference = np.random.default_rng(1).normal(0.3, 1, size=200)
    interval = paired_bootstrap(difference, np.zeros(200), [str(number) for number in range(200)])
    error = 1.96 * difference.std() / math.sqrt(200)
    assert interval.low == pytest.approx(difference.mean() - error, abs=0.02)
    assert interval.high == pytest.approx(difference.mean() + error, abs=0.02)


def test_queries_measured_on_one_side_only_are_left_out() -> None:
    new, old = np.array([1.0, 2.0, np.nan, 9.0]), np.array([0.0, 0.0, 5.0, np.nan])
    assert paired_bootstrap(new, old, ["a", "b", "c", "d"]) == paired_bootstrap(new[:2], old[:2], ["a", "b"])


def test_one_group_or_none_gives_no_bounds() -> None:
    single = paired_bootstrap(np.ones(2), np.zeros(2), ["a", "a"])
    assert single.mean == 1 and np.isnan([single.low, single.high]).all()
    nothing = paired_bootstrap(np.array([np.nan]), np.zeros(1), ["a"])
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_interval_is_the_same_for_the_same_seed_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    new, old, groups = rng.random(40), rng.random(40), [f"g{number % 13}" for number in range(40)]
    first = paired_bootstrap(new, old, groups)
    assert first == paired_bootstrap(new, old, groups)
    assert first != paired_bootstrap(new, old, groups, seed=1)
    monkeypatch.setattr(ranking_module, "DRAWS_PER_BLOCK", 1_000)
    assert first == paired_bootstrap(new, old, groups)
