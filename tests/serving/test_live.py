"""A live release follows its store, and a failed attempt leaves it as it was; the cache stays within its bound."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from support.tiny_release import ReleaseMaker, unit_vectors

from indexing import LiveRelease
from indexing.errors import ConfigError, DamagedError, NightcrateError
from indexing.release.manifest import Release, release_key
from indexing.store import Store, open_store
from indexing.store.blobs import blob_key
from indexing.store.cache import GRACE_S, BlobCache

QUERY = unit_vectors(1, seed=9)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


def publish(store: Store, folder: Path, seed: int, num_items: int = 50) -> Release:
    """A release with items named after its seed."""
    own = folder / f"seed-{seed}"
    own.mkdir()
    maker = ReleaseMaker(own)
    ids = [f"{seed}-{i}" for i in range(num_items)]
    return maker.publish(store, maker.collection("tracks", ids, unit_vectors(num_items, seed=seed)))


def seed_of(live: LiveRelease) -> str:
    return live.search(QUERY, k=1)[0][0].item_id.split("-")[0]


def test_refresh_serves_the_newest_release_and_says_whether_it_switched(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, 1)
    live = LiveRelease(store.url, cache_dir=tmp_path / "cache")
    assert (seed_of(live), live.refresh()) == ("1", False)
    publish(store, tmp_path, 2)
    publish(store, tmp_path, 3)
    assert seed_of(live) == "1"
    assert live.refresh()
    assert (seed_of(live), live.release.number) == ("3", 3)


@pytest.mark.case(11)
@pytest.mark.parametrize("part", ["index", "items", "metadata"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_new_release_leaves_the_old_one_serving_and_says_so(
    store: Store, tmp_path: Path, part: str, damage: str
) -> None:
    publish(store, tmp_path, 1)
    live = LiveRelease(store.url, cache_dir=tmp_path / "cache")
    shard = publish(store, tmp_path, 2).collections[0].shards[0]
    key = blob_key(getattr(shard, part).sha256)
    data = store.get(key)
    if damage == "gone":
        store.delete(key)
    else:
        store.put(key, data[:-7] if damage == "cut" else data[:200] + bytes([data[200] ^ 1]) + data[201:])
    with pytest.raises(DamagedError, match=getattr(shard, part).sha256):
        live.refresh()
    assert (seed_of(live), live.release.number) == ("1", 1)
    store.put(key, data)
    assert live.refresh()
    assert seed_of(live) == "2"


@pytest.mark.case(12)
def test_an_unreadable_release_file_leaves_the_old_one_serving(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, 1)
    live = LiveRelease(store.url, cache_dir=tmp_path / "cache")
    store.put(release_key(2), b'{"half": ')
    with pytest.raises(DamagedError):
        live.refresh()
    assert seed_of(live) == "1"


def test_canaries_that_a_release_cannot_answer_keep_it_from_being_served(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, 1)
    with pytest.raises(ConfigError, match="no encoder"):
        LiveRelease(store.url, cache_dir=tmp_path / "cache", canaries=["rainy sunday piano"])


def test_searches_that_run_during_a_refresh_see_one_complete_release(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, 1)
    live = LiveRelease(store.url, cache_dir=tmp_path / "cache")
    ended, mixed, seen = threading.Event(), [], set()

    def search() -> None:
        while not ended.is_set():
            seeds = {hit.item_id.split("-")[0] for hit in live.search(QUERY, k=20)[0]}
            seen.update(seeds)
            if len(seeds) > 1:
                mixed.append(seeds)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for seed in range(2, 6):
            publish(store, tmp_path, seed)
            assert live.refresh()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not mixed
    assert {"1", "5"} & seen


def test_a_release_that_is_followed_needs_a_store_with_one(store: Store) -> None:
    with pytest.raises(NightcrateError, match="no release"):
        LiveRelease(store.url)


def test_the_cache_drops_what_was_fetched_longest_ago_and_nothing_young(store: Store, tmp_path: Path) -> None:
    release = publish(store, tmp_path, 1)
    cache = BlobCache(tmp_path / "cache")
    paths = [cache.fetch(store, blob) for blob in release.blobs().values()]
    cache.trim(max_bytes=0)
    assert all(path.exists() for path in paths), "young files stay, whatever the bound"
    sizes = [path.stat().st_size for path in paths]
    for age, path in enumerate(paths):
        fetched = path.stat().st_atime - GRACE_S - 10 * age - 1
        os.utime(path, (fetched, path.stat().st_mtime))
    cache.trim(max_bytes=sum(sizes[:-1]))
    assert [path.exists() for path in paths] == [True] * (len(paths) - 1) + [False]
    cache.trim(max_bytes=0)
    assert not any(path.exists() for path in paths)
    assert cache.fetch(store, next(iter(release.blobs().values()))).exists()


def test_files_of_a_killed_download_are_deleted(tmp_path: Path, store: Store) -> None:
    release = publish(store, tmp_path, 1)
    cache = BlobCache(tmp_path / "cache")
    path = cache.fetch(store, next(iter(release.blobs().values())))
    leftover = path.with_name("abc.tmp")
    leftover.write_bytes(b"half")
    cache.trim(max_bytes=1 << 40)
    assert leftover.exists(), "another process may be writing it"
    os.utime(leftover, (leftover.stat().st_atime - GRACE_S - 1, leftover.stat().st_mtime))
    cache.trim(max_bytes=1 << 40)
    assert not leftover.exists()
    assert path.exists()


def test_searching_while_another_process_trims_still_finds_its_files(store: Store, tmp_path: Path) -> None:
    publish(store, tmp_path, 1)
    cache_dir = tmp_path / "cache"
    live = LiveRelease(store.url, cache_dir=cache_dir, cache_bytes=0)
    for path in cache_dir.rglob("*"):
        if path.is_file():
            path.unlink()
    assert live.search(QUERY, k=1)[0][0].metadata["title"].startswith("title of 1-")
    assert np.isfinite(live.search(QUERY, k=5).scores).all()
