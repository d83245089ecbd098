import logging
import math

import bm25s
import numpy as np
import pytest

from jobs.evaluation.bm25 import bm25_search

TITLES = ["rainy sunday piano", "Sunday morning", "Piano, piano!", "The Who", "Дождь и Солнце", "U2"]


def lucene_score(count: int, length: int, mean_length: float, found_in: int, num_texts: int) -> float:
    idf = math.log(1 + (num_texts - found_in + 0.5) / (found_in + 0.5))
    return idf * count / (count + 1.5 * (0.25 + 0.75 * length / mean_length))


def test_order_is_that_of_the_scores_by_hand() -> None:
    texts = ["piano piano forte", "piano", "piano rain rain rain", "rain"]
    first = [lucene_score(2, 3, 9 / 4, 3, 4), lucene_score(1, 1, 9 / 4, 3, 4), lucene_score(1, 4, 9 / 4, 3, 4)]
    assert sorted(range(3), key=lambda row: -first[row]) == [1, 0, 2]
    assert bm25_search(texts, ["piano"], k=3).tolist() == [[1, 0, 2]]


def test_a_rare_word_outweighs_a_frequent_one() -> None:
    texts = ["love song", "love rain", "love me", "storm song"]
    assert bm25_search(texts, ["love storm"], k=1).tolist() == [[3]]


def test_what_has_no_word_of_the_query_is_not_found() -> None:
    found = bm25_search(TITLES, ["piano", "nothing like it", ""], k=10)
    assert found.dtype == np.int64
    assert found.tolist() == [[2, 0, -1, -1, -1, -1], [-1] * 6, [-1] * 6]


def test_case_script_stopwords_and_short_words_all_match() -> None:
    assert bm25_search(TITLES, ["the who", "ДОЖДЬ", "u2", "SUNDAY Morning"], k=1).tolist() == [[3], [4], [5], [1]]
    assert bm25_search(["X", "Y"], ["y"], k=1).tolist() == [[1]]


@pytest.mark.parametrize("k", [1, 7, 299])
def test_of_equal_texts_the_earlier_comes_first(k: int) -> None:
    texts = ["same song"] * 300
    texts[211] = "same same"
    expected = [211, *(row for row in range(300) if row != 211)]
    assert bm25_search(texts, ["same"], k=k).tolist() == [expected[:k]]


def test_found_rows_are_those_of_bm25s_itself() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.zipf(1.3, size=rng.integers(3, 40)) % 200) for _ in range(400)]
    queries = texts[:20]
    tokens = bm25s.tokenize(texts, stopwords=[], show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    words = bm25s.tokenize(queries, stopwords=[], return_ids=False, show_progress=False)
    _, scores = index.retrieve(words, k=10, show_progress=False)
    for row, found in enumerate(bm25_search(texts, queries, k=10)):
        np.testing.assert_allclose(index.get_scores(words[row])[found], scores[row], rtol=1e-5)


@pytest.mark.parametrize(("texts", "shape"), [([], (2, 0)), (["...", "!"], (2, 2))])
def test_texts_without_words_are_never_found(texts: list[str], shape: tuple[int, int]) -> None:
    found = bm25_search(texts, ["rain", "..."], k=5)
    assert found.shape == shape and (found == -1).all()


def test_search_writes_neither_bars_nor_log_lines(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("bm25s").setLevel(logging.DEBUG)
    bm25_search(TITLES, ["piano", ""], k=2)
    assert capfd.readouterr() == ("", "") and not caplog.records
