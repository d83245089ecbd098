"""Pairs: what each source makes of a log or a catalogue, and what the sampler draws of them."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from indexing.catalogue.contract import CONTRACT
from indexing.errors import ConfigError, DataError
from jobs.config.training import SOURCES
from jobs.inputs.interactions import INTERACTIONS
from jobs.training.encoder.pairs import (
    KEY_ROWS,
    METADATA_QUERIES,
    PAIRS,
    clicked_pairs,
    metadata_pairs,
    reformulated_pairs,
)
from jobs.training.encoder.sampler import GroupSampler, share_out, split_groups

SEED = 7
TITLES = ["So What", "Blue in Green", "Flamenco Sketches", "All Blues", "Freddie Freeloader", "東京ジャズ", "aaaa"]


def log(*rows: dict[str, Any]) -> pa.Table:
    good = {"query": "q", "item_id": "t1", "weight": 1.0, "query_group": "g"}
    return pa.Table.from_pylist([{**good, **row} for row in rows], schema=INTERACTIONS)


def searches(*rows: tuple[str, str, float, str | None]) -> pa.Table:
    """(session, query, second, item) each; the query is its own group."""
    return log(
        *(
            {"session_id": session, "query": query, "query_group": query, "timestamp": second, "item_id": item}
            for session, query, second, item in rows
        )
    )


def items(*titles: str | None, creators: list[str | None] | None = None) -> pa.Table:
    rows = [{"item_id": f"t{at}", "title": title, "creators": creators} for at, title in enumerate(titles)]
    return pa.Table.from_pylist(rows, schema=pa.schema([field.with_nullable(True) for field in CONTRACT]))


def pairs_of(*rows: tuple[str, str, float]) -> pa.Table:
    """(source, group, weight) each."""
    return pa.Table.from_pylist(
        [
            {"query": "q", "item_id": f"t{at}", "weight": weight, "query_group": group, "source": source}
            for at, (source, group, weight) in enumerate(rows)
        ],
        schema=PAIRS,
    )


def short(pairs: pa.Table) -> list[tuple[Any, ...]]:
    return [(row["query"], row["item_id"], row["weight"], row["query_group"]) for row in pairs.to_pylist()]


# --- clicks ---


def test_equal_clicks_add_up_and_come_sorted() -> None:
    rows = [{"query": "z"}, {"item_id": "t2"}, {"weight": 0.5}, {}, {"query_group": "f"}]
    pairs = clicked_pairs(log(*rows))
    assert pairs.schema == PAIRS
    assert short(pairs) == [("q", "t1", 1, "f"), ("q", "t1", 1.5, "g"), ("q", "t2", 1, "g"), ("z", "t1", 1, "g")]
    assert set(pairs["source"].to_pylist()) == {"clicks"}
    assert clicked_pairs(log(*reversed(rows))) == pairs


def test_a_search_that_led_to_nothing_is_no_click() -> None:
    pairs = clicked_pairs(log({"item_id": None}, {"item_id": " "}, {"weight": 0.0}))
    assert pairs == PAIRS.empty_table()
    assert clicked_pairs(INTERACTIONS.empty_table()) == PAIRS.empty_table()


# --- reformulations ---


def test_a_failed_query_takes_the_clicks_group_and_weight_of_the_next_one() -> None:
    table = searches(("s", "jaz", 0, None), ("s", "jazz", 10, "t1"), ("s", "jazz", 12, "t2"))
    pairs = reformulated_pairs(table.set_column(2, "weight", pa.array([0, 2, 3], pa.float32())))
    assert pairs.schema == PAIRS
    assert short(pairs) == [("jaz", "t1", 2, "jazz"), ("jaz", "t2", 3, "jazz")]
    assert set(pairs["source"].to_pylist()) == {"reformulations"}


def test_the_order_is_that_of_time_and_the_same_lesson_of_two_sessions_adds_up() -> None:
    table = searches(("a", "jazz", 10, "t1"), ("b", "jazz", 20, "t1"), ("b", "jaz", 15, None), ("a", "jaz", 0, None))
    assert short(reformulated_pairs(table)) == [("jaz", "t1", 2, "jazz")]


@pytest.mark.parametrize(
    "rows",
    [
        [("a", "jaz", 0, None), ("b", "jazz", 10, "t1")],
        [("a", "jaz", 0, None), ("a", "jazz", 301, "t1")],
        [("a", "jaz", 0, None), ("a", "jazz", 0, "t1")],
        [("a", "jazz", 0, None), ("a", "jazz", 10, "t1")],
        [("a", "jaz", 0, None), ("a", "jazz", 10, None)],
        [("a", "jaz", 0, None), ("a", "x", 10, None), ("a", "x", 11, None)],
        [("a", "jaz", 0, "t2"), ("a", "jazz", 10, "t1")],
        [("a", "jaz", 0, None), ("a", "jaz", 5, "t2"), ("a", "jazz", 10, "t1")],
        [("a", "jazz", 0, "t1"), ("a", "jaz", 10, None)],
        [(None, "jaz", 0, None), (None, "jazz", 10, "t1")],
        [("a", "jaz", None, None), ("a", "jazz", 10, "t1")],
        [("a", "jaz", float("nan"), None), ("a", "jazz", 10, "t1")],
        [("a", "jaz", 0, None)],
        [],
    ],
    ids=[
        "other session",
        "too late",
        "same instant",
        "same text",
        "failed again",
        "failed twice",
        "had clicks",
        "had clicks later",
        "wrong order",
        "no session",
        "no time",
        "time is nan",
        "alone",
        "empty",
    ],
)
def test_no_reformulation_where(rows: list[Any]) -> None:
    assert reformulated_pairs(searches(*rows)) == PAIRS.empty_table()


def test_a_search_ends_with_its_session() -> None:
    table = searches(("a", "jaz", 0, "t2"), ("b", "jaz", 0, None), ("b", "jazz", 10, "t1"))
    assert short(reformulated_pairs(table)) == [("jaz", "t1", 1, "jazz")]


def test_only_the_query_directly_before_counts_and_the_gap_is_between_neighbours() -> None:
    table = searches(("s", "a", 0, None), ("s", "b", 290, None), ("s", "b", 400, None), ("s", "c", 690, "t1"))
    assert short(reformulated_pairs(table)) == [("b", "t1", 1, "c")]
    assert reformulated_pairs(table, max_gap_s=289).num_rows == 0


# --- metadata ---


def test_each_source_asks_for_the_item_in_its_way() -> None:
    pairs = metadata_pairs(items("So What", creators=[None, " ", "Miles Davis", "Bill Evans"]), SOURCES[2:], SEED)
    found = {row["source"]: row for row in pairs.to_pylist()}
    assert pairs.schema == PAIRS
    assert pairs.num_rows == len(METADATA_QUERIES) == len(found)
    assert {row["item_id"] for row in found.values()} == {"t0"}
    assert {row["weight"] for row in found.values()} == {1}
    assert {name: found[name]["query"] for name in ("title", "title_creator", "creator")} == {
        "title": "So What",
        "title_creator": "So What Miles Davis",
        "creator": "Miles Davis",
    }
    assert {name: row["query_group"] for name, row in found.items()} == {
        **dict.fromkeys(METADATA_QUERIES, "item:t0"),
        "creator": "creator:miles davis",
    }


def test_an_item_without_the_field_gives_no_pair() -> None:
    assert metadata_pairs(items(None, " "), SOURCES[2:], SEED).num_rows == 0
    assert metadata_pairs(items(), SOURCES[2:], SEED) == PAIRS.empty_table()
    titled = metadata_pairs(items("So What", creators=[" "]), ["title", "title_creator", "creator"], SEED)
    assert titled["source"].to_pylist() == ["title"]


def test_prefixes_are_what_was_typed_so_far_at_every_length() -> None:
    title = "So What"
    prefixes = metadata_pairs(items(*[title] * 200), ["prefix"], SEED)["query"].to_pylist()
    assert set(prefixes) == {title.lower()[:length] for length in range(3, len(title))}
    assert metadata_pairs(items("abc"), ["prefix"], SEED).num_rows == 0


def edits(title: str) -> dict[str, set[str]]:
    """All that one slip can make of a title in lower case, by kind."""
    places = range(len(title))
    beside = {(row[at], row[at + step]) for row in KEY_ROWS for at in range(len(row) - 1) for step in (1,)}
    beside |= {(right, left) for left, right in beside}
    return {
        "drop": {title[:at] + title[at + 1 :] for at in places},
        "double": {title[: at + 1] + title[at:] for at in places},
        "swap": {title[:at] + title[at + 1] + title[at] + title[at + 2 :] for at in places[:-1]},
        "beside": {title[:at] + new + title[at + 1 :] for at in places for old, new in beside if title[at] == old},
    }


def test_typos_are_one_slip_of_every_kind_and_never_the_title() -> None:
    typos = metadata_pairs(items(*TITLES * 50), ["typo"], SEED)
    titles = {f"t{at}": title.lower() for at, title in enumerate(TITLES * 50)}
    kinds: Counter[str] = Counter()
    for query, item_id in zip(typos["query"].to_pylist(), typos["item_id"].to_pylist(), strict=True):
        title = titles[item_id]
        made_by = [kind for kind, results in edits(title).items() if query.lower() in results]
        assert made_by and query.lower() != title
        kinds.update(made_by)
    assert typos.num_rows == len(TITLES) * 50
    assert min(kinds[kind] for kind in ("drop", "double", "swap", "beside")) > 40
    assert metadata_pairs(items("abc"), ["typo"], SEED).num_rows == 0


def test_a_slip_keeps_capitals() -> None:
    typos = metadata_pairs(items(*["MMMM"] * 50), ["typo"], SEED)["query"].to_pylist()
    assert set(typos) == {"MMM", "MMMMM", "NMMM", "MNMM", "MMNM", "MMMN"}


def test_queries_of_an_item_depend_on_seed_and_item_alone() -> None:
    table = items(*TITLES, creators=["Miles Davis"])
    whole = metadata_pairs(table, SOURCES[2:], SEED)
    assert metadata_pairs(table.take(list(reversed(range(len(TITLES))))), SOURCES[2:], SEED) == whole
    halves = pa.concat_tables(metadata_pairs(table.slice(at, 4), SOURCES[2:], SEED) for at in (0, 4))
    assert sorted(map(str, halves.to_pylist())) == sorted(map(str, whole.to_pylist()))
    typos = [metadata_pairs(table, ["typo"], seed) for seed in (SEED, SEED + 1)]
    assert typos[0] != typos[1]


# --- folds ---


def test_a_group_is_in_one_fold_whatever_its_rows() -> None:
    groups = [f"g{number % 50}" for number in range(500)]
    folds = split_groups(groups, 5, SEED)
    assert folds.dtype == np.int64
    assert len(set(zip(groups, folds.tolist(), strict=True))) == 50
    assert set(folds) == set(range(5))
    assert np.array_equal(split_groups(pa.chunked_array([groups[3:90], groups[90:]]), 5, SEED), folds[3:])
    assert not np.array_equal(split_groups(groups, 5, SEED + 1), folds)
    assert split_groups([], 5, SEED).shape == (0,)


def test_folds_never_change() -> None:
    assert split_groups(["jazz", "blues", "キャンプ"], 1000, SEED).tolist() == [578, 128, 330]


# --- sampling ---


def test_a_big_group_is_drawn_no_more_often_than_a_small_one() -> None:
    rows = [("clicks", "small", 1.0)] * 20 + [("clicks", "big", 1.0)] * 2000
    drawn = GroupSampler(pairs_of(*rows), {"clicks": 1}, SEED).sample(0, 40)
    assert drawn.dtype == np.int64
    assert (drawn < 20).sum() == 20


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    pairs = pairs_of(*(("clicks", f"g{number % 30}", 1.0) for number in range(100)))
    one, two = (GroupSampler(pairs, {"clicks": 1}, SEED) for _ in range(2))
    late = one.sample(9, 16)
    assert [len(one.sample(step, 16)) for step in range(9)] == [16] * 9
    assert np.array_equal(two.sample(9, 16), late)
    assert not np.array_equal(two.sample(10, 16), late)
    assert not np.array_equal(GroupSampler(pairs, {"clicks": 1}, SEED + 1).sample(9, 16), late)


def test_an_epoch_draws_every_group_once_and_each_epoch_and_seed_in_its_own_order() -> None:
    pairs = pairs_of(*(("clicks", f"g{number}", 1.0) for number in range(30)))
    sampler = GroupSampler(pairs, {"clicks": 1}, SEED)
    drawn = np.concatenate([sampler.sample(step, 12) for step in range(5)])
    assert sorted(drawn[:30]) == sorted(drawn[30:]) == list(range(30))
    assert not np.array_equal(drawn[:30], drawn[30:])
    other = GroupSampler(pairs, {"clicks": 1}, SEED + 1)
    assert not np.array_equal(other.sample(0, 30), drawn[:30])


def test_pairs_of_a_group_are_drawn_by_weight() -> None:
    pairs = pairs_of(("clicks", "other", 1e6), ("clicks", "g", 1.0), ("clicks", "other", 1e6), ("clicks", "g", 3.0))
    sampler = GroupSampler(pairs, {"clicks": 1}, SEED)
    counts = Counter(int(row) for step in range(4000) for row in sampler.sample(step, 1))
    assert counts[1] + counts[3] == counts[0] + counts[2] == 2000
    assert counts[3] / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_group_drawn_again_in_a_batch_gives_other_rows_as_long_as_it_has_them() -> None:
    rows = [("clicks", "g", 1e6)] + [("clicks", "g", 1.0)] * 9 + [("clicks", "few", 1.0)] * 2
    sampler = GroupSampler(pairs_of(*rows), {"clicks": 1}, SEED)
    for step in range(20):
        counts = Counter(sampler.sample(step, 12).tolist())
        assert [counts[row] for row in (10, 11)] == [3, 3]
        assert counts[0] == 1
        assert max(counts[row] for row in range(10)) == 1


def test_a_group_drawn_again_at_the_end_of_an_epoch_gives_another_row() -> None:
    pairs = pairs_of(*(("clicks", f"g{number // 2}", 1.0) for number in range(6)))
    sampler = GroupSampler(pairs, {"clicks": 1}, SEED)
    batches = [sampler.sample(step, 2) for step in range(60)]
    assert any(a // 2 == b // 2 for a, b in batches)  # some groups did meet themselves
    assert all(a != b for a, b in batches)


def test_rows_of_a_group_drawn_again_are_still_drawn_by_weight() -> None:
    pairs = pairs_of(*(("clicks", "g", weight) for weight in (1.0, 1.0, 8.0)))
    sampler = GroupSampler(pairs, {"clicks": 1}, SEED)
    counts = Counter(int(row) for step in range(2000) for row in sampler.sample(step, 2))
    # Of two draws without replacement, the heavy one is missing with 0.1 × 1/9 × 2.
    assert counts[2] / 2000 == pytest.approx(1 - 2 / 90, abs=0.02)


def test_sources_share_a_batch_and_those_without_pairs_leave_theirs_to_the_rest() -> None:
    rows = [(source, f"g{number}", 1.0) for source in ("clicks", "title", "typo") for number in range(40)]
    sampler = GroupSampler(pairs_of(*rows), {"typo": 0, "title": 1, "clicks": 3, "creator": 4}, SEED)
    drawn = sampler.sample(3, 16)
    assert [((drawn // 40) == source).sum() for source in range(3)] == [12, 4, 0]


def test_each_source_has_its_own_order_which_does_not_change_with_the_other_sources() -> None:
    rows = [(source, f"g{number}", 1.0) for source in ("clicks", "title") for number in range(40)]
    alone = GroupSampler(pairs_of(*rows), {"title": 1}, SEED).sample(3, 8)
    clicks, titles = GroupSampler(pairs_of(*rows), {"clicks": 1, "title": 1}, SEED).sample(3, 16).reshape(2, 8)
    assert np.array_equal(titles, alone)
    assert not np.array_equal(clicks, titles - 40)


def test_one_pair_fills_a_batch() -> None:
    assert GroupSampler(pairs_of(("title", "g", 1.0)), {"title": 1}, SEED).sample(5, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shares", [{}, {"clicks": 0}, {"clicks": 2, "title": -1}, {"clicks": float("nan")}])
def test_shares_that_cannot_be_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shares: expected numbers from 0 up with a sum above 0"):
        GroupSampler(pairs_of(("clicks", "g", 1.0)), shares, SEED)


@pytest.mark.parametrize("pairs", [PAIRS.empty_table(), pairs_of(("title", "g", 1.0))], ids=["no pairs", "others"])
def test_shares_of_sources_without_pairs_are_refused(pairs: pa.Table) -> None:
    with pytest.raises(DataError, match="expected pairs from clicks, prefix, got none"):
        GroupSampler(pairs, {"prefix": 1, "clicks": 1}, SEED)


@pytest.mark.parametrize(
    ("total", "shares", "expected"),
    [(10, [0.1, 0.2, 0.7], [1, 2, 7]), (2, [0.5, 0.25, 0.25], [1, 1, 0]), (5, [0.46, 0.44, 0.1], [2, 2, 1])],
)
def test_shares_round_to_the_whole_by_largest_remainder(total: int, shares: list[float], expected: list[int]) -> None:
    assert share_out(total, np.array(shares)).tolist() == expected
