"""Ranges of stable hashes: every key has exactly one, on every machine, forever."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.key_ranges import KEY_SPACE, id_keys, key_range, num_shards, range_of

TOTALS = st.integers(1, 3000)
KEYS = st.lists(st.integers(0, KEY_SPACE - 1), min_size=1, max_size=50)


@given(TOTALS)
def test_ranges_cover_every_key_once(total: int) -> None:
    ranges = [key_range(number, total) for number in range(total)]
    assert ranges[0].low == 0
    assert ranges[-1].high == KEY_SPACE - 1
    assert all(before.high + 1 == after.low for before, after in pairwise(ranges))


@given(TOTALS)
def test_ranges_are_of_equal_size(total: int) -> None:
    sizes = [keys.high - keys.low + 1 for keys in (key_range(number, total) for number in range(total))]
    assert max(sizes) - min(sizes) <= 1


@given(KEYS, TOTALS)
def test_a_key_lies_in_the_range_that_range_of_names(keys: list[int], total: int) -> None:
    for key, number in zip(keys, range_of(np.array(keys, dtype=np.uint64), total), strict=True):
        keys_in = key_range(int(number), total)
        assert keys_in.low <= key <= keys_in.high


@given(TOTALS, st.data())
def test_the_ends_of_a_range_belong_to_it(total: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, total - 1))
    keys = key_range(number, total)
    assert range_of(np.array([keys.low, keys.high], dtype=np.uint64), total).tolist() == [number, number]


def test_ranges_of_a_power_of_two_split_those_of_a_smaller_one() -> None:
    for number in range(8):
        half = key_range(number // 2, 4)
        keys = key_range(number, 8)
        assert half.low <= keys.low and keys.high <= half.high


@pytest.mark.parametrize(("number", "total"), [(-1, 4), (4, 4), (0, 0)])
def test_a_range_that_does_not_exist_is_refused(number: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"range {number} of {total} does not exist"):
        key_range(number, total)


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


def test_ids_keep_their_shards_forever() -> None:
    keys = id_keys(f"track-{number}" for number in range(12))
    assert range_of(keys, 4).tolist() == [0, 0, 1, 1, 3, 2, 1, 3, 0, 0, 1, 2]


def test_no_ids_have_no_keys() -> None:
    assert id_keys([]).tolist() == []
    assert range_of(id_keys([]), 4).tolist() == []


def test_shards_get_about_the_same_number_of_items() -> None:
    counts = np.bincount(range_of(id_keys(f"item-{number}" for number in range(20_000)), 8), minlength=8)
    assert counts.min() > 2_300 and counts.max() < 2_700


@pytest.mark.parametrize(
    ("num_items", "rows_per_shard", "expected"), [(0, 10, 1), (1, 10, 1), (10, 10, 1), (11, 10, 2), (101, 10, 11)]
)
def test_number_of_shards_keeps_each_within_rows_per_shard(num_items: int, rows_per_shard: int, expected: int) -> None:
    assert num_shards(num_items, rows_per_shard) == expected
