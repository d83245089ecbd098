"""Strings are ordered as Python orders them, whatever their length."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.fanout import peak_memory_bytes
from indexing.ranks import numbers, sorted_numbers, text_ranks

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=4), min_size=1, max_size=8)


@given(TEXTS)
@settings(derandomize=True)
def test_ranks_follow_pythons_order_and_are_equal_for_equal_texts(texts: list[str]) -> None:
    """NumPy's strings would take "a" and "a" with a zero after it for equal."""
    ranks = text_ranks(np.array(texts, object)).tolist()
    assert ranks == text_ranks(pa.array(texts)).tolist()
    for one, rank in zip(texts, ranks, strict=True):
        for other, its_rank in zip(texts, ranks, strict=True):
            assert (one < other, one == other) == (rank < its_rank, rank == its_rank)


@given(TEXTS, st.integers(0, 8))
@settings(derandomize=True)
def test_numbers_count_the_distinct_texts_of_all_chunks_as_they_come_or_in_pythons_order(
    texts: list[str], cut: int
) -> None:
    column = pa.chunked_array([texts[:cut], [], texts[cut:]], pa.string())
    found, values = numbers(column)
    assert values.to_pylist() == list(dict.fromkeys(texts))
    assert [values[number].as_py() for number in found] == texts
    found, values = sorted_numbers(column)
    assert values.to_pylist() == sorted(set(texts))
    assert [values[number].as_py() for number in found] == texts
    assert found.dtype == np.int32


def test_a_column_without_chunks_has_no_numbers() -> None:
    found, values = sorted_numbers(pa.chunked_array([], pa.string()))
    assert (len(found), values.to_pylist()) == (0, [])


def test_ranks_keep_the_shape_of_a_table_of_hits() -> None:
    hits = np.array([["b", "a", "c"], ["b", "b", "a\0"]], object)
    assert np.argsort(text_ranks(hits), axis=1, kind="stable").tolist() == [[1, 0, 2], [2, 0, 1]]
    assert text_ranks(hits).shape == (2, 3)


def test_one_long_id_costs_its_own_length_and_not_that_of_all() -> None:
    """NumPy's strings of fixed width would take 8 GB for these."""
    ids = np.array([str(number) for number in range(100_000)], object)
    ids[7] = "x" * 20_000
    before = peak_memory_bytes()
    text_ranks(ids)
    assert peak_memory_bytes() - before < 256 << 20
