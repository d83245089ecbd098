"""Going back to an old release: one linear history, and never to an incomplete release."""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.tiny_release import ReleaseMaker, make_release, unit_vectors

from indexing import open_release
from indexing.errors import ConfigError, DamagedError, PublishConflict
from indexing.release.commit import commit_release, read_release, release_numbers
from indexing.release.manifest import Release
from indexing.release.rollback import roll_back
from indexing.release.verify import verify_release
from indexing.store import Store, open_store
from indexing.store.blobs import Blob, blob_key
from jobs.__main__ import main

IDS = ["a", "b", "c", "d"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Releases 1, 2 and 3."""
    store, maker = open_store(f"file://{tmp_path}/store"), ReleaseMaker(tmp_path)
    for seed in (1, 2, 3):
        maker.publish(store, maker.collection("tracks", IDS, unit_vectors(4, seed=seed)))
    return store


def content(release: Release) -> Release:
    """What of a release decides its answers."""
    return replace(release, number=0, parent=None, kind="build", created_at="", writer_id="", holds=None, digest=None)


def test_a_rollback_is_the_next_release_with_the_old_content(store: Store, tmp_path: Path) -> None:
    release = roll_back(store, 1)
    assert (release.number, release.parent, release.kind) == (4, 3, "rollback")
    assert content(release) == content(read_release(store, 1))
    assert read_release(store) == release
    found = open_release(store.url, cache_dir=tmp_path / "cache").search(unit_vectors(4, seed=1), k=1)
    assert found.item_ids.ravel().tolist() == IDS


def test_a_rollback_works_on_any_store(store_url: str, tmp_path: Path) -> None:
    store, maker = open_store(store_url), ReleaseMaker(tmp_path)
    for seed in (1, 2):
        maker.publish(store, maker.collection("tracks", IDS, unit_vectors(4, seed=seed)))
    verify_release(store, roll_back(store, 1))


def test_a_rollback_to_the_current_or_to_no_release_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="release 3 is the current one already"):
        roll_back(store, 3)
    with pytest.raises(ConfigError, match=r"no release 7 in .*: it has 1 to 3"):
        roll_back(store, 7)


DAMAGES: dict[str, Callable[[Store, str], None]] = {
    "gone": lambda store, key: store.delete(key),
    "cut": lambda store, key: store.put(key, store.get(key)[:-1]),
    "flipped": lambda store, key: store.put(key, store.get(key)[:-1] + bytes([store.get(key)[-1] ^ 1])),
}


@pytest.mark.case(15)
@pytest.mark.parametrize("part", ["index", "items", "metadata"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_rollback_to_an_incomplete_release_exits_3_and_publishes_nothing(
    store: Store, damage: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    blob: Blob = getattr(read_release(store, 1).collections[0].shards[0], part)
    DAMAGES[damage](store, blob_key(blob.sha256))
    assert main(["rollback", store.url, "--to", "1"]) == 3
    assert blob.sha256 in capsys.readouterr().err
    assert release_numbers(store) == [1, 2, 3]


@pytest.mark.case(15)
def test_a_blob_that_is_damaged_while_it_is_verified_is_noticed(store: Store) -> None:
    """Verification reads the store last, after old blobs were sent again."""
    index = read_release(store, 1).collections[0].shards[0].index
    upload = store.upload

    def keep_other_bytes(key: str, path: Path, sha256: str) -> bool:
        upload(key, path, sha256)
        store.put(key, bytes(path.stat().st_size))
        return False

    store.upload = keep_other_bytes  # type: ignore[method-assign]
    with pytest.raises(DamagedError, match=index.sha256):
        roll_back(store, 1)
    assert release_numbers(store) == [1, 2, 3]


@pytest.mark.case(14)
def test_a_publish_that_comes_first_makes_the_rollback_start_again(store: Store) -> None:
    current = read_release(store)
    is_published = threading.Event()

    def publish_meanwhile(blob: Blob) -> None:
        if not is_published.is_set():
            commit_release(store, make_release(4, *current.collections, writer_id="the nightly run"))
            is_published.set()

    with pytest.raises(PublishConflict, match="release 4 by the nightly run"):
        roll_back(store, 1, publish_meanwhile)
    assert [(read_release(store, number).kind) for number in release_numbers(store)] == ["build"] * 4


@pytest.mark.case(14)
def test_a_rollback_that_comes_first_makes_the_publish_start_again(store: Store) -> None:
    publishing = make_release(4, *read_release(store, 2).collections, writer_id="the nightly run")
    rolled_back = roll_back(store, 1)
    with pytest.raises(PublishConflict, match="expected release 3 to be current, but release 4"):
        commit_release(store, publishing)
    assert read_release(store) == rolled_back
    commit_release(store, replace(publishing, number=5, parent=4))
    assert [read_release(store, number).parent for number in release_numbers(store)] == [None, 1, 2, 3, 4]


@pytest.mark.case(14)
def test_concurrent_rollbacks_and_publishes_make_one_linear_history(store: Store) -> None:
    """Whoever loses starts again from the new current release, as a person or the next night would."""
    collections = read_release(store).collections

    def publish(number: int) -> None:
        while True:
            parent = read_release(store)
            release = make_release(parent.number + 1, *collections, writer_id=f"publish {number}")
            try:
                return commit_release(store, release)
            except PublishConflict:
                continue

    def go_back(number: int) -> None:
        while True:
            try:
                roll_back(store, 1 + number % 3)
                return
            except (PublishConflict, ConfigError):
                continue

    threads = [threading.Thread(target=act, args=(i,)) for i in range(4) for act in (publish, go_back)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    releases = [read_release(store, number) for number in release_numbers(store)]
    assert [release.number for release in releases] == list(range(1, 12))
    assert [release.parent for release in releases] == [None, *range(1, 11)]
    assert [release.kind for release in releases].count("rollback") == 4
    assert len({release.writer_id for release in releases}) == 11


@pytest.mark.case(14)
def test_a_rollback_that_loses_its_lease_at_any_check_publishes_nothing(store: Store) -> None:
    """It checks between the blobs that it sends again, between those it verifies, and before the commit."""
    num_blobs, most = len(read_release(store, 1).blobs()), 0

    def check(limit: int) -> None:
        nonlocal most
        most += 1
        if most > limit:
            raise PublishConflict("lost")

    for limit in range(num_blobs + 2):  # of the blobs of release 1, release 3 lacks only the graph
        most = 0
        with pytest.raises(PublishConflict, match="lost"):
            roll_back(store, 1, check=partial(check, limit))
        assert release_numbers(store) == [1, 2, 3]
    most = 0
    roll_back(store, 1, check=partial(check, num_blobs + 2))
    assert (most, release_numbers(store)) == (num_blobs + 2, [1, 2, 3, 4])
