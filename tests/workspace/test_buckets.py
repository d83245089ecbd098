"""Buckets: which keys they have, and reading one file by one request."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.key_ranges import KEY_SPACE, KeyRange, key_range
from indexing.store import open_store
from jobs.workspace.buckets import (
    IDS,
    buckets_in,
    buckets_of,
    num_buckets,
    read_bucket_file,
    rows_in,
    write_bucket_file,
)


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(0, 8), (500, 8), (65_536, 8), (131_072, 16), (1_000_000, 64), (10**8, 2048)]
)
def test_buckets_are_a_power_of_two_within_bounds(num_rows: int, expected: int) -> None:
    assert num_buckets(num_rows) == expected


@given(key=st.integers(0, KEY_SPACE - 1), power=st.integers(0, 11), number=st.integers(0, 8), total=st.integers(1, 9))
def test_the_buckets_of_a_range_are_those_of_its_keys(key: int, power: int, number: int, total: int) -> None:
    keys = key_range(number % total, total)
    (bucket,) = buckets_of(np.array([key], np.uint64), 1 << power)
    if keys.low <= key <= keys.high:
        assert bucket in buckets_in(keys, 1 << power)
    assert bucket == key * (1 << power) // KEY_SPACE


def test_rows_of_a_collection_and_a_range_include_its_ends() -> None:
    keys = np.array([0, 5, 2**63, KEY_SPACE - 1, 5], np.uint64)
    ids = pa.table({"collection": [*["tracks"] * 4, "shows"], "id_key": keys})
    for low, high, count in ((0, 0, 1), (0, 4, 1), (5, 2**63, 2), (2**63, KEY_SPACE - 1, 2), (6, 2**63 - 1, 0)):
        assert sum(rows_in(ids, "tracks", KeyRange(low, high)).to_pylist()) == count


def test_what_is_written_is_read(store_url: str) -> None:
    store, rows = open_store(store_url), pa.table({"item_id": ["a", "b"], "title": ["A", "B"]})
    write_bucket_file(store, "items/x", IDS, 3, rows)
    assert read_bucket_file(store, "items/x", IDS, 3).equals(rows)
    assert read_bucket_file(store, "items/x", IDS, 3, ["title"]).column_names == ["title"]
