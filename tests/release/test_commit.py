"""One linear history of releases: blobs are there before the file that names them, and nobody is overwritten."""

import dataclasses
import hashlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.report import Trials
from support.tiny_release import ReleaseMaker, bare_release, make_release, send_files, unit_vectors

from indexing.errors import ConfigError, DamagedError, PublishConflict, StoreUnavailable
from indexing.release.commit import commit_release, missing_blobs, read_release, release_numbers, resend_missing
from indexing.release.manifest import release_key, release_to_bytes
from indexing.store import Store, open_store
from indexing.store.blobs import Blob, blob_key
from indexing.store.local import LocalStore


@pytest.fixture
def local_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def any_store(store_url: str) -> Store:
    return open_store(store_url)


@pytest.fixture
def local_files(tmp_path: Path) -> dict[str, Path]:
    """Twenty small files, by sha256."""
    files = {}
    for number in range(20):
        path = tmp_path / f"file-{number}"
        path.write_bytes(b"content %d" % number * 100)
        files[hashlib.sha256(path.read_bytes()).hexdigest()] = path
    return files


def test_a_committed_release_is_read_back_equal_and_is_current(tmp_path: Path, any_store: Store) -> None:
    maker = ReleaseMaker(tmp_path)
    collection = maker.collection("tracks", [f"t{i}" for i in range(40)], unit_vectors(40), num_shards=2)
    first, second = maker.publish(any_store, collection), maker.publish(any_store, collection)
    assert release_numbers(any_store) == [1, 2]
    assert read_release(any_store) == read_release(any_store, 2) == second
    assert read_release(any_store, 1) == first


def test_blobs_are_sent_once_and_then_reused(any_store: Store, local_files: dict[str, Path]) -> None:
    size_bytes = sum(path.stat().st_size for path in local_files.values())
    seen: list[Blob] = []
    sent = send_files(any_store, local_files, seen.append)
    again = send_files(any_store, local_files)
    assert (sent.uploaded, sent.uploaded_bytes, sent.reused) == (20, size_bytes, 0)
    assert (again.uploaded, again.reused, again.reused_bytes) == (0, 20, size_bytes)
    assert {blob.sha256 for blob in seen} == set(local_files)
    for sha256, path in local_files.items():
        assert any_store.get(blob_key(sha256)) == path.read_bytes()


@pytest.mark.case(10)
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"X" + data[1:], lambda data: b""])
def test_a_damaged_blob_in_the_store_is_replaced_not_reused(
    local_store: Store, local_files: dict[str, Path], damage: Callable[[bytes], bytes]
) -> None:
    send_files(local_store, local_files)
    sha256, path = next(iter(local_files.items()))
    local_store.put(blob_key(sha256), damage(path.read_bytes()))
    assert send_files(local_store, local_files).uploaded == 1
    assert local_store.get(blob_key(sha256)) == path.read_bytes()


def test_a_file_that_is_not_what_its_digest_says_is_not_uploaded(
    local_store: Store, local_files: dict[str, Path]
) -> None:
    sha256, path = next(iter(local_files.items()))
    path.write_bytes(b"changed since it was hashed")
    with pytest.raises(DamagedError, match=sha256):
        send_files(local_store, local_files)
    assert local_store.head(blob_key(sha256)) is None


class ForgetfulStore(LocalStore):
    """Keeps other bytes than it was sent, without noticing."""

    def upload(self, key: str, path: Path, sha256: str) -> bool:
        self.put(key, b"\0" * path.stat().st_size)
        return False


@pytest.mark.case(10)
def test_a_store_that_keeps_other_bytes_is_detected_before_the_commit(
    tmp_path: Path, local_files: dict[str, Path]
) -> None:
    with pytest.raises(StoreUnavailable, match="has other bytes"):
        send_files(ForgetfulStore(tmp_path / "store"), local_files)


@pytest.mark.case(10)
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_blob_altered_after_its_upload_is_sent_again_or_blocks_the_commit(
    tmp_path: Path, any_store: Store, damage: str
) -> None:
    maker = ReleaseMaker(tmp_path)
    release = make_release(1, maker.collection("tracks", ["a", "b", "c"], unit_vectors(3)))
    index = release.collections[0].shards[0].index
    key = blob_key(index.sha256)
    send_files(any_store, maker.files)
    if damage == "flipped" and any_store.url.startswith("file:"):
        pytest.skip("a folder keeps no checksums: the reader refuses it")

    def send() -> None:
        send_files(any_store, maker.files)

    def meddle() -> None:
        data = any_store.get(key) if any_store.head(key) else b""
        any_store.delete(key) if damage == "gone" else any_store.put(key, data[:-1] + b"\1" * (damage == "flipped"))

    meddle()
    assert missing_blobs(any_store, release) == [index.sha256]
    resend_missing(any_store, release, send)
    assert missing_blobs(any_store, release) == []

    def send_in_vain() -> None:
        send()
        meddle()

    meddle()
    with pytest.raises(StoreUnavailable, match="1 blobs of release 1 are deleted or altered each time they are sent"):
        resend_missing(any_store, release, send_in_vain)


@pytest.mark.case(4)
def test_of_many_publishers_from_one_parent_exactly_one_wins(any_store: Store, trials: Trials) -> None:
    commit_release(any_store, bare_release(1))
    barrier = threading.Barrier(50)

    def publish(writer: int) -> str | None:
        barrier.wait()
        try:
            commit_release(any_store, bare_release(2, f"writer-{writer}"))
        except PublishConflict:
            return None
        return f"writer-{writer}"

    trials.tried(50)
    with ThreadPoolExecutor(50) as pool:
        winners = [winner for winner in pool.map(publish, range(50)) if winner]
    assert winners == [read_release(any_store).writer_id]
    assert release_numbers(any_store) == [1, 2]
    trials.held(50)


@pytest.mark.case(5)
def test_a_stalled_run_learns_who_published_in_between_and_overwrites_nothing(any_store: Store) -> None:
    commit_release(any_store, bare_release(1))
    commit_release(any_store, bare_release(2, "the other run"))
    before = any_store.get(release_key(2))
    expected = "expected release 1 to be current, but release 2 by the other run at 2026-01-31T02:00:00+00:00 is"
    with pytest.raises(PublishConflict, match=re.escape(expected)):
        commit_release(any_store, bare_release(2, "the stalled run"))
    assert any_store.get(release_key(2)) == before
    with pytest.raises(PublishConflict, match="expected no release to be current, but release 2"):
        commit_release(any_store, bare_release(1, "a first run"))
    with pytest.raises(PublishConflict, match="expected release 8 to be current, but release 2"):
        commit_release(any_store, bare_release(9))


def test_the_same_run_committing_twice_conflicts_with_itself(local_store: Store) -> None:
    commit_release(local_store, bare_release(1))
    with pytest.raises(PublishConflict, match="someone"):
        commit_release(local_store, bare_release(1))


def test_an_invalid_release_is_never_written(local_store: Store) -> None:
    with pytest.raises(DamagedError, match="dim"):
        commit_release(local_store, dataclasses.replace(bare_release(1), dim=0))
    assert release_numbers(local_store) == []


def test_a_store_without_releases_says_what_to_run(local_store: Store) -> None:
    with pytest.raises(ConfigError, match=rf"no release in {local_store.url}: run nightly first"):
        read_release(local_store)


def test_a_number_that_does_not_exist_gets_the_range_that_does(local_store: Store) -> None:
    commit_release(local_store, bare_release(1))
    commit_release(local_store, bare_release(2))
    for number in (0, 3, -1, 10**25):
        with pytest.raises(ConfigError, match=f"no release {number} in .*: it has 1 to 2"):
            read_release(local_store, number)


def test_other_names_next_to_the_releases_are_ignored(local_store: Store) -> None:
    commit_release(local_store, bare_release(1))
    for name in ("2.json", "latest", "0000000000000000000x.json", "9" * 20 + ".json", "old/" + "0" * 19 + "7.json"):
        local_store.put(f"releases/{name}", b"{}")
    assert release_numbers(local_store) == [1]


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 50_000, release_to_bytes(bare_release(3)), b" " * (32 * 2**20 + 1)]
)
def test_a_damaged_current_release_file_is_named(local_store: Store, data: bytes) -> None:
    local_store.put(release_key(1), data)
    with pytest.raises(DamagedError, match=release_key(1)) as caught:
        read_release(local_store)
    assert "\n" not in str(caught.value)


@pytest.mark.case(12)
def test_a_release_file_of_a_gigabyte_is_refused_before_it_is_read(local_store: Store) -> None:
    local_store.put(release_key(1), b"")
    os.truncate(local_store._path(release_key(1)), 1 << 30)  # type: ignore[attr-defined]
    with pytest.raises(DamagedError, match=f"expected at most {32 * 2**20} bytes in .*, got {1 << 30}"):
        read_release(local_store)
