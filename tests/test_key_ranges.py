"""Ranges of stable hashes: every key has exactly one, on every machine, forever."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.id_keys import id_keys, is_in, range_of
from indexing.key_ranges import KEY_SPACE, KeyRange, key_range, num_shards, shard_range

TOTALS = st.integers(1, 300)
FINDERS = st.sampled_from([key_range, shard_range])
KEYS = st.lists(st.integers(0, KEY_SPACE - 1), min_size=1, max_size=50)


RANGES = st.builds(lambda find, total: [find(number, total) for number in range(total)], FINDERS, TOTALS)


def width(keys: KeyRange) -> int:
    return keys.high - keys.low + 1


@given(RANGES)
def test_ranges_cover_every_key_once(ranges: list[KeyRange]) -> None:
    assert ranges[0].low == 0
    assert ranges[-1].high == KEY_SPACE - 1
    assert all(before.high + 1 == after.low for before, after in pairwise(ranges))


@given(TOTALS)
def test_equal_ranges_are_of_equal_size(total: int) -> None:
    sizes = [width(key_range(number, total)) for number in range(total)]
    assert max(sizes) - min(sizes) <= 1


@given(TOTALS)
def test_the_largest_shard_is_at_most_twice_the_smallest(total: int) -> None:
    sizes = {width(shard_range(number, total)) for number in range(total)}
    assert max(sizes) <= 2 * min(sizes)


@given(TOTALS)
def test_one_shard_more_splits_one_range_in_two(total: int) -> None:
    before, after = ({shard_range(number, count) for number in range(count)} for count in (total, total + 1))
    (split,), halves = before - after, sorted(after - before, key=lambda keys: keys.low)
    assert [(keys.low, width(keys)) for keys in halves] == [
        (split.low, width(split) // 2),
        (split.low + width(split) // 2, width(split) // 2),
    ]


@given(KEYS, RANGES)
def test_a_key_lies_in_the_range_that_range_of_names(keys: list[int], ranges: list[KeyRange]) -> None:
    values = np.array(keys, dtype=np.uint64)
    for number, key in zip(range_of(values, ranges), values, strict=True):
        assert [is_in(np.array([key]), keys_in)[0] for keys_in in ranges].index(True) == number


@given(RANGES, st.data())
def test_the_ends_of_a_range_belong_to_it(ranges: list[KeyRange], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(ranges) - 1))
    ends = np.array([ranges[number].low, ranges[number].high], dtype=np.uint64)
    assert range_of(ends, ranges).tolist() == [number, number]
    assert is_in(ends, ranges[number]).all()


@pytest.mark.parametrize("find", [key_range, shard_range])
@pytest.mark.parametrize(("number", "total"), [(-1, 4), (4, 4), (0, 0)])
def test_a_range_that_does_not_exist_is_refused(find: Callable[[int, int], KeyRange], number: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"range {number} of {total} does not exist"):
        find(number, total)


def test_ids_keep_their_keys_forever() -> None:
    keys = id_keys(["track-1", "track-2", "", "Björk — Jóga", "日本"])
    assert keys.dtype == np.uint64
    assert [f"{key:016x}" for key in keys] == [
        "02969ce65529503e",
        "5e9521da72a65f0e",
        "e4a6a0577479b2b4",
        "0b1b25c512d7f12b",
        "e83335cfe1549b3a",
    ]


FOUR = [key_range(number, 4) for number in range(4)]


def test_ids_keep_their_shards_forever() -> None:
    keys = id_keys(f"track-{number}" for number in range(12))
    assert range_of(keys, FOUR).tolist() == [0, 0, 1, 1, 3, 2, 1, 3, 0, 0, 1, 2]
    six = [shard_range(number, 6) for number in range(6)]
    assert range_of(keys, six).tolist() == [0, 0, 2, 2, 5, 4, 2, 5, 1, 0, 2, 4]


def test_no_ids_have_no_keys() -> None:
    assert id_keys([]).tolist() == []
    assert range_of(id_keys([]), FOUR).tolist() == []


def test_equal_ranges_get_about_the_same_number_of_items() -> None:
    counts = np.bincount(range_of(id_keys(f"item-{number}" for number in range(20_000)), FOUR), minlength=4)
    assert counts.min() > 4_800 and counts.max() < 5_200


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_no_shard_is_larger_than_half_as_much_again(num_items: int, rows_per_shard: int) -> None:
    total = num_shards(num_items, rows_per_shard)
    assert num_items / 2 ** (total.bit_length() - 1) <= 1.5 * rows_per_shard
    assert total == 1 or num_items / total > rows_per_shard / 2


def test_growth_by_a_quarter_percent_a_night_splits_each_shard_at_most_once() -> None:
    num_items, total, splits = 1_000_000.0, num_shards(1_000_000, 10_000), 0
    for _ in range(60):
        num_items *= 1.0025
        now = num_shards(int(num_items), 10_000, total)
        splits += now - total
        assert now - total <= 1 + 0.0025 * total * 1.5
        total = now
    assert 0 < splits < 0.2 * total


def test_a_collection_that_hovers_keeps_its_shards() -> None:
    total = num_shards(1_000_000, 10_000)
    sizes = [1_000_000 + (-1) ** night * 50_000 for night in range(30)]
    later = num_shards(sizes[0], 10_000, total)
    for size in sizes:
        assert num_shards(size, 10_000, later) == later


def test_a_collection_that_shrinks_to_a_half_loses_shards() -> None:
    assert num_shards(500_000, 10_000, num_shards(1_000_000, 10_000)) == num_shards(600_000, 10_000)
