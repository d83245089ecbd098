"""Prune deletes what nothing needs, and nothing when it cannot be sure."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import UNAVAILABLE, FaultProxy, always
from support.history import DAY_S, History, keys_of, old_history, prune, still_ours
from support.seaweedfs import SeaweedFS
from support.tiny_release import ReleaseMaker, make_release, send_files, unit_vectors

from indexing.errors import ConfigError, DamagedError, DataError, StoreUnavailable
from indexing.release.commit import read_release
from indexing.release.lease import hold_lease
from indexing.release.manifest import release_key
from indexing.release.retention import MIN_AGE_S, apply_prune, pin, pinned_numbers, plan_prune, unpin
from indexing.release.verify import verify_release
from indexing.store import ObjectInfo, S3Settings, Store, open_store
from indexing.store.blobs import blob_key
from indexing.store.local import LocalStore
from indexing.store.s3 import S3Store
from jobs.__main__ import main


@pytest.fixture
def history(tmp_path: Path) -> History:
    return old_history(tmp_path)


@pytest.mark.case(16)
def test_only_what_no_kept_release_lists_is_deleted(history: History) -> None:
    plan = prune(history.store, keep_last=2)
    assert plan.protected == {3: "one of the last 2", 4: "one of the last 2"}
    assert [history.has(read_release(history.store, number)) for number in (1, 2, 3, 4)] == [False, False, True, True]
    assert len(plan.to_delete) == 2  # the graphs; ids and metadata are the same in every release
    assert [info.key for info in history.store.list("releases/")] == [release_key(number) for number in (1, 2, 3, 4)]
    verify_release(history.store, read_release(history.store, 3))


@pytest.mark.case(16)
def test_the_last_releases_stay_whatever_their_age(history: History) -> None:
    prune(history.store, keep_last=1, min_age_s=MIN_AGE_S)
    verify_release(history.store, read_release(history.store))


@pytest.mark.case(16)
def test_pinned_releases_stay_until_they_are_unpinned(history: History) -> None:
    pin(history.store, 2)
    plan = prune(history.store)
    assert plan.protected == {2: "pinned", 4: "one of the last 1"}
    verify_release(history.store, read_release(history.store, 2))
    unpin(history.store, 2)
    prune(history.store)
    assert not history.has(read_release(history.store, 2))


@pytest.mark.case(16)
def test_young_blobs_and_young_releases_stay(history: History) -> None:
    young = history.publish(5)
    uncommitted = history.collection(6)
    send_files(history.store, history.files(make_release(9, uncommitted)))
    history.publish(7)
    plan = prune(history.store)
    assert plan.protected == {5: "young", 6: "one of the last 1"}
    assert plan.num_young == 1  # the graph of seed 6, which no release lists
    assert history.has(young)
    assert history.has(make_release(9, uncommitted))


@pytest.mark.case(16)
def test_nothing_is_deleted_without_apply(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    before = keys_of(history.store)
    assert main(["prune", history.store.url, "--keep-last", "1"]) == 0
    assert keys_of(history.store) == before
    assert "to delete: 3 blobs" in capsys.readouterr().out
    assert main(["prune", history.store.url, "--keep-last", "1", "--apply"]) == 0
    assert "deleted 3 blobs" in capsys.readouterr().out
    assert len(list(history.store.list("blobs/"))) == 3


def test_only_existing_releases_are_pinned_and_only_pinned_ones_unpinned(history: History) -> None:
    with pytest.raises(ConfigError, match="no release 9"):
        pin(history.store, 9)
    with pytest.raises(ConfigError, match="release 2 is not pinned; pinned: none"):
        unpin(history.store, 2)
    assert pinned_numbers(history.store) == []


@pytest.mark.case(16)
def test_while_one_holds_the_lease_a_prune_or_rollback_exits_5(
    history: History, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold_lease(history.store, "a publish", wait=False):
        before = keys_of(history.store)
        assert main(["prune", history.store.url, "--keep-last", "1", "--apply"]) == 5
        assert main(["rollback", history.store.url, "--to", "2"]) == 5
        assert keys_of(history.store) == before
    assert capsys.readouterr().err.count("a publish has the lease") == 2


# ---- when in doubt, delete nothing ----


@pytest.fixture
def refuses(history: History) -> Iterator[Callable[..., None]]:
    """Expects prune to raise that, though blobs are old enough, and to have deleted nothing."""

    def expect(error: type[Exception], words: str, store: Store = history.store) -> None:
        before = keys_of(history.store)
        with pytest.raises(error, match=words):
            prune(store, min_age_s=MIN_AGE_S)
        assert keys_of(history.store) == before

    yield expect


@pytest.mark.case(17)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_gap_in_the_listed_releases_deletes_nothing(
    history: History, refuses: Callable[..., None], number: int
) -> None:
    history.store.delete(release_key(number))
    refuses(DamagedError, f"without a gap, the listing lacks {number}; nothing is deleted")


class Forgetful(LocalStore):
    """Its listings lack the keys that `lost` names, though the objects are there."""

    lost: tuple[str, ...] = ()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter([info for info in super().list(prefix) if info.key not in self.lost])


@pytest.mark.case(17)
def test_a_listing_without_the_newest_release_deletes_nothing(history: History, refuses: Callable[..., None]) -> None:
    store = Forgetful(Path(history.store.url.removeprefix("file://")))
    store.lost = (release_key(4),)
    refuses(DamagedError, "the listing lacks 4", store)
    store.lost = tuple(release_key(number) for number in (1, 2, 3, 4))
    refuses(DamagedError, "the listing lacks 1", store)


@pytest.mark.case(17)
def test_a_listing_without_a_pin_leaves_the_pinned_release_alone(history: History) -> None:
    pin(history.store, 2)
    store = Forgetful(Path(history.store.url.removeprefix("file://")))
    store.lost = ("pins/00000000000000000002.json",)
    assert prune(store).protected == {2: "pinned", 4: "one of the last 1"}


@pytest.mark.case(17)
@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff"])
def test_a_release_file_that_cannot_be_read_deletes_nothing(
    history: History, refuses: Callable[..., None], data: bytes
) -> None:
    history.store.put(release_key(1), data)
    refuses(DamagedError, release_key(1))


@pytest.mark.case(17)
@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S])
def test_a_clock_that_is_off_by_a_day_deletes_nothing(
    history: History, refuses: Callable[..., None], monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    """The store's clock against this machine's; whichever of the two is wrong."""
    now = history.store.now
    monkeypatch.setattr(history.store, "now", lambda: now() + off_s)
    refuses(StoreUnavailable, "expected its clock and this machine's to agree, got 86400 s")


@pytest.mark.case(17)
@pytest.mark.parametrize("key", [release_key(3), "a blob"])
def test_objects_from_the_future_delete_nothing(history: History, refuses: Callable[..., None], key: str) -> None:
    """Both clocks have been set back."""
    path = history.store._path(next(iter(history.store.list("blobs/"))).key if key == "a blob" else key)
    os.utime(path, (time.time() + DAY_S, time.time() + DAY_S))
    refuses(StoreUnavailable, "got one 86[34]00 s behind the newest")


@pytest.mark.case(17)
@pytest.mark.parametrize("prefix", ["blobs", "releases"])
def test_a_listing_that_fails_on_s3_deletes_nothing(
    s3_server: SeaweedFS, s3_store_url: str, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.001)
    monkeypatch.setattr("indexing.store.s3._pause", lambda attempt: None)
    monkeypatch.setattr("indexing.release.retention.MIN_AGE_S", 0.0)  # nobody can make S3's objects old
    store, maker = open_store(s3_store_url), ReleaseMaker(tmp_path)
    for seed in (1, 2):
        maker.publish(store, maker.collection("tracks", ["a", "b", "c"], unit_vectors(3, seed=seed)))
    before = keys_of(store)
    with FaultProxy(s3_server.endpoint) as proxy:
        proxy.plan = always(lambda request: "list-type=2" in request.path and prefix in request.path, UNAVAILABLE)
        faulty = S3Store(s3_store_url, S3Settings(endpoint=proxy.endpoint), page_size=1)
        with pytest.raises(StoreUnavailable, match="overloaded"):
            prune(faulty, min_age_s=0)
        num_seen = 0

        def second_page(request: Any) -> bool:
            nonlocal num_seen
            num_seen += "list-type=2" in request.path and prefix in request.path
            return num_seen > 1 and "list-type=2" in request.path and prefix in request.path

        proxy.plan = always(second_page, UNAVAILABLE)
        with pytest.raises(StoreUnavailable):
            prune(faulty, min_age_s=0)
    assert keys_of(store) == before


# ---- what a killed publish leaves ----


@pytest.mark.case(9)
def test_multipart_uploads_that_nobody_finished_are_aborted_once_old(
    s3_server: SeaweedFS, s3_store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, maker = open_store(s3_store_url), ReleaseMaker(tmp_path)
    maker.publish(store, maker.collection("tracks", ["a", "b", "c"], unit_vectors(3)))
    bucket, _, prefix = s3_store_url.removeprefix("s3://").partition("/")
    client, key = s3_server.client(), f"{prefix}/{blob_key('ab' * 32)}"
    upload_id = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"x" * 1000)
    before = keys_of(store)

    assert len(plan_prune(store, keep_last=1, min_age_s=3600).to_abort) == 0  # young: it may still be running
    assert len(prune(store, min_age_s=3600).to_abort) == 0
    assert len(store.list_uploads()) == 1
    time.sleep(2.1)  # S3 stamps whole seconds
    monkeypatch.setattr("indexing.release.retention.MIN_AGE_S", 1.0)  # nobody can make S3's uploads old
    plan = prune(store, min_age_s=1)
    assert [upload.key for upload in plan.to_abort] == [blob_key("ab" * 32)]
    assert store.list_uploads() == ()
    assert keys_of(store) == before


@pytest.mark.case(9)
def test_temporary_files_that_nobody_finished_are_deleted_once_old(history: History) -> None:
    temporary = history.store._temp_path(blob_key("ab" * 32))
    temporary.write_bytes(b"half a blob")
    assert prune(history.store).to_abort == []
    os.utime(temporary, (time.time() - 2 * DAY_S, time.time() - 2 * DAY_S))
    assert len(prune(history.store).to_abort) == 1
    assert not temporary.exists()


@pytest.mark.case(9)
def test_a_prune_of_the_least_age_leaves_the_writes_of_those_who_wait_for_its_lease(history: History) -> None:
    waiting = history.store._temp_path("leases/publish.json")
    waiting.write_bytes(b"{}")
    assert prune(history.store, min_age_s=MIN_AGE_S).to_abort == []
    os.utime(waiting, (time.time() - DAY_S, time.time() - DAY_S))
    assert len(prune(history.store, min_age_s=MIN_AGE_S).to_abort) == 1
    assert not waiting.exists()


# ---- only its own ----

STRANGE_KEYS = [
    "blobs/notes.txt",
    "blobs/sha256/notes.txt",
    f"blobs/sha256/ab/{'cd' * 32}",
    f"blobs/sha256/ab/{'ab' * 31}",
    f"blobs/sha256/AB/{'AB' * 32}",
    f"blobs/sha256/ab/{'ab' * 32}/x",
    f"blobs/sha256/ab/{'ab' * 32}.json",
    "blobs/sha512/ab/" + "ab" * 32,
]


@pytest.mark.case(16)
@pytest.mark.parametrize("key", STRANGE_KEYS)
def test_only_keys_of_the_exact_form_of_a_blob_are_deleted(history: History, key: str) -> None:
    history.store.put(key, b"somebody's")
    history.age(2 * DAY_S, key)
    assert len(prune(history.store).to_delete) == 3
    assert history.store.get(key) == b"somebody's"


@pytest.mark.case(16)
def test_a_link_among_the_blobs_costs_no_file_elsewhere(history: History, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / ("ab" * 32)
    outside.parent.mkdir()
    outside.write_text("keep me")
    os.utime(outside, (0, 0))
    root = Path(history.store.url.removeprefix("file://"))
    (root / "blobs" / "x").symlink_to(outside.parent)
    assert len(prune(history.store).to_delete) == 3
    (root / "blobs" / "sha256" / "ab").symlink_to(outside.parent)
    history.publish(9)
    history.age(2 * DAY_S, "releases/")
    with pytest.raises(DataError, match="got a symbolic link"):
        prune(history.store)
    assert outside.read_text() == "keep me"


@pytest.mark.case(9)
def test_unfinished_uploads_of_other_programs_are_left_alone(history: History) -> None:
    for name in ("backup/photos.tar", "blobs/sha256/notes"):
        history.store._temp_path(name).write_bytes(b"half")
    (Path(history.store.url.removeprefix("file://")) / ".tmp" / "README").write_text("keep me")
    for path in (Path(history.store.url.removeprefix("file://")) / ".tmp").iterdir():
        os.utime(path, (0, 0))
    assert prune(history.store).to_abort == []


# ---- ages and pins ----


@pytest.mark.case(16)
@pytest.mark.parametrize("min_age_s", [0, 60, MIN_AGE_S - 1])
def test_an_age_at_which_publishes_trust_blobs_is_refused(
    history: History, min_age_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    before = keys_of(history.store)
    with pytest.raises(ConfigError, match=r"retention.min_age: expected at least 3600 s"):
        plan_prune(history.store, keep_last=1, min_age_s=min_age_s)
    plan = replace(plan_prune(history.store, keep_last=1, min_age_s=MIN_AGE_S), min_age_s=min_age_s)
    with pytest.raises(ConfigError, match=r"retention.min_age: expected at least 3600 s"):
        apply_prune(history.store, plan, still_ours)
    assert main(["prune", history.store.url, "--min-age", f"{min_age_s:.0f}s", "--apply"]) == 2
    assert keys_of(history.store) == before


@pytest.mark.case(16)
def test_a_release_whose_blobs_are_deleted_is_not_pinned(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    prune(history.store)
    assert main(["pin", history.store.url, "2"]) == 3
    assert "1 are missing or altered" in capsys.readouterr().err
    assert pinned_numbers(history.store) == []


@pytest.mark.case(16)
def test_blobs_that_vanish_while_a_release_is_pinned_remove_the_pin_again(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexing.release.retention.wait_for_prune", lambda store: prune(history.store))
    monkeypatch.setattr("indexing.release.retention.pinned_among", lambda store, numbers: [])
    monkeypatch.setattr("indexing.release.retention.newly_protected", lambda store, plan: set())
    with pytest.raises(DamagedError, match="release 2"):
        pin(history.store, 2)
    assert pinned_numbers(history.store) == []
