"""Prune deletes what nothing needs, and nothing when it cannot be sure; no race with it loses a blob."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fault_proxy import UNAVAILABLE, FaultProxy, always
from support.report import Trials
from support.seaweedfs import SeaweedFS
from support.tiny_release import ReleaseMaker, make_release, unit_vectors

from indexing import open_release
from indexing.errors import ConfigError, DamagedError, PublishConflict, StoreUnavailable
from indexing.release.commit import commit_release, missing_blobs, read_release, upload_blobs
from indexing.release.lease import hold_lease
from indexing.release.manifest import Collection, Release, blob_key, release_key
from indexing.release.retention import PrunePlan, apply_prune, pin, pinned_numbers, plan_prune, unpin
from indexing.release.rollback import roll_back
from indexing.release.verify import verify_release
from indexing.store import ObjectInfo, S3Settings, Store, open_store
from indexing.store.local import LocalStore
from indexing.store.s3 import S3Store
from jobs.__main__ import main
from jobs.publish import resend_missing

DAY_S = 86_400.0


class History:
    """Releases of one collection each, all of other vectors, in a store whose objects can be made old."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder / "store")
        self.maker = ReleaseMaker(folder)

    def collection(self, seed: int) -> Collection:
        folder = self.maker.folder / str(seed)
        folder.mkdir(exist_ok=True)
        maker = replace(self.maker, folder=folder)  # the same files, collected together
        return maker.collection("tracks", [f"t{i}" for i in range(20)], unit_vectors(20, seed=seed))

    def publish(self, seed: int) -> Release:
        """The next release, of the files of that seed alone."""
        collection, number = self.collection(seed), len(list(self.store.list("releases/"))) + 1
        release = make_release(number, collection)
        parent = read_release(self.store) if number > 1 else None
        upload_blobs(self.store, self.files(release), parent=parent)
        commit_release(self.store, release)
        return release

    def files(self, release: Release) -> dict[str, Path]:
        return {sha256: self.maker.files[sha256] for sha256 in release.blobs()}

    def age(self, seconds: float, prefix: str = "") -> None:
        for info in self.store.list(prefix):
            os.utime(self.store._path(info.key), (info.modified - seconds, info.modified - seconds))

    def has(self, release: Release) -> bool:
        return not missing_blobs(self.store, release)


@pytest.fixture
def history(tmp_path: Path) -> History:
    """Releases 1 to 4, all two days old."""
    history = History(tmp_path)
    for seed in range(1, 5):
        history.publish(seed)
    history.age(2 * DAY_S)
    return history


def still_ours() -> None:
    """In place of `Lease.check`: a prune that does not notice what happens."""


def prune(
    store: Store, *, keep_last: int = 1, min_age_s: float = DAY_S, check: Callable[[], None] = still_ours
) -> PrunePlan:
    plan = plan_prune(store, keep_last=keep_last, min_age_s=min_age_s)
    apply_prune(store, plan, check)
    return plan


def keys_of(store: Store) -> list[str]:
    return [info.key for info in store.list()]


@pytest.mark.case(16)
def test_only_what_no_kept_release_lists_is_deleted(history: History) -> None:
    plan = prune(history.store, keep_last=2)
    assert plan.protected == {3: "one of the last 2", 4: "one of the last 2"}
    assert [history.has(read_release(history.store, number)) for number in (1, 2, 3, 4)] == [False, False, True, True]
    assert len(plan.doomed) == 2  # the graphs; ids and metadata are the same in every release
    assert [info.key for info in history.store.list("releases/")] == [release_key(number) for number in (1, 2, 3, 4)]
    verify_release(history.store, read_release(history.store, 3))


@pytest.mark.case(16)
def test_the_last_releases_stay_whatever_their_age(history: History) -> None:
    prune(history.store, keep_last=1, min_age_s=0)
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
    upload_blobs(history.store, history.files(make_release(9, uncommitted)))
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
    assert capsys.readouterr().err.count("a publish is running") == 2


# ---- races: a prune that has planned to delete the old blobs of release 2, against one that wants them ----

MOMENTS = ["before the upload", "after the upload", "after the commit"]


@pytest.mark.case(16)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_publish_that_reuses_an_old_blob_loses_none_to_a_stalled_prune(history: History, moment: str) -> None:
    """Without the lease, as a prune would run that has stalled, been taken over, and not noticed yet."""
    plan = plan_prune(history.store, keep_last=1, min_age_s=DAY_S)
    release = replace(make_release(5, history.collection(2)), parent=4)  # what release 2 held, in demand again
    assert {blob_key(sha256) for sha256 in release.blobs()} & {info.key for info in plan.doomed}

    def upload() -> None:
        upload_blobs(history.store, history.files(release), parent=read_release(history.store, 4))

    steps: dict[str, Callable[[], Any]] = {
        "before the upload": upload,
        "after the upload": lambda: commit_release(history.store, release),
        "after the commit": lambda: resend_missing(history.store, release, upload),
    }
    for name, step in steps.items():
        if name == moment:
            apply_prune(history.store, plan, check=still_ours)
        step()
    verify_release(history.store, release)


@pytest.mark.case(16)
def test_a_prune_that_deletes_in_spite_of_its_last_look_is_made_good_after_the_commit(history: History) -> None:
    """The prune stalled between its look at the blob's age and its DELETE."""
    release = replace(make_release(5, history.collection(2)), parent=4)
    sent: list[str] = []

    def upload() -> None:
        upload_blobs(history.store, history.files(release), lambda blob: sent.append(blob.sha256))

    upload()
    commit_release(history.store, release)
    index = release.collections[0].shards[0].index
    history.store.delete(blob_key(index.sha256))
    resend_missing(history.store, release, upload)
    verify_release(history.store, release)
    history.store.delete(blob_key(index.sha256))
    with pytest.raises(StoreUnavailable, match="vanish or change as often as they are sent"):
        resend_missing(history.store, release, lambda: None)


def publish_reused(history: History, release: Release) -> None:
    """What jobs.publish does, lease aside."""
    parent = read_release(history.store) if release.parent else None

    def upload() -> None:
        upload_blobs(history.store, history.files(release), parent=parent)

    upload()
    commit_release(history.store, release)
    resend_missing(history.store, release, upload)


@pytest.mark.case(16)
def test_many_publishes_prunes_and_rollbacks_that_take_turns_lose_nothing(tmp_path: Path, trials: Trials) -> None:
    """Each holds the lease, as the commands do. Every release reuses blobs that the prunes, of age 0, would take."""
    history, stop, errors = History(tmp_path), threading.Event(), list[BaseException]()
    collections = [history.collection(seed) for seed in range(3)]
    history.publish(0)

    def in_turn(act: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                with hold_lease(history.store, threading.current_thread().name, wait=True, ttl_s=30, poll_s=0.002):
                    act()
                time.sleep(0.005)
        except BaseException as error:
            errors.append(error)
            stop.set()

    def go_back() -> None:
        current = read_release(history.store)
        whole = [number for number in range(1, current.number) if history.has(read_release(history.store, number))]
        if whole:
            roll_back(history.store, whole[0])

    threads = [
        threading.Thread(target=in_turn, args=(lambda: prune(history.store, min_age_s=0),), name="prune"),
        threading.Thread(target=in_turn, args=(go_back,), name="rollback"),
    ]
    for thread in threads:
        thread.start()
    try:
        for turn in range(15):
            with hold_lease(history.store, "publish", wait=True, ttl_s=30, poll_s=0.002):
                trials.tried()
                number = read_release(history.store).number + 1
                publish_reused(history, make_release(number, collections[turn % 3]))
                verify_release(history.store, read_release(history.store))
                trials.held()
            time.sleep(0.005)
            assert not errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    verify_release(history.store, read_release(history.store))


@pytest.mark.case(16)
def test_a_rollback_loses_no_blob_to_a_stalled_prune(history: History) -> None:
    plan = plan_prune(history.store, keep_last=1, min_age_s=DAY_S)
    release = roll_back(history.store, 2)
    apply_prune(history.store, plan, check=still_ours)
    verify_release(history.store, release)


@pytest.mark.case(16)
def test_a_prune_stops_at_the_deletion_before_which_it_has_lost_its_lease(history: History) -> None:
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise PublishConflict("lost")

    before = len(list(history.store.list("blobs/")))
    with pytest.raises(PublishConflict):
        prune(history.store, check=check)
    assert len(list(history.store.list("blobs/"))) == before - 1


@pytest.mark.case(16)
def test_a_reader_goes_on_through_a_prune_and_opens_the_current_release(history: History, tmp_path: Path) -> None:
    readers = [open_release(history.store.url, number=number, cache_dir=tmp_path / "cache") for number in (2, 4)]
    queries = unit_vectors(3)
    before = [reader.search(queries, k=3).item_ids.tolist() for reader in readers]
    prune(history.store)
    assert [reader.search(queries, k=3).item_ids.tolist() for reader in readers] == before
    with pytest.raises(DamagedError, match="found nothing there"):
        open_release(history.store.url, number=2, cache_dir=tmp_path / "another cache")
    assert open_release(history.store.url, cache_dir=tmp_path / "another cache").release.number == 4


# ---- when in doubt, delete nothing ----


@pytest.fixture
def refuses(history: History) -> Iterator[Callable[..., None]]:
    """Expects prune to raise that, whatever the ages, and to have deleted nothing."""

    def expect(error: type[Exception], words: str, store: Store = history.store) -> None:
        before = keys_of(history.store)
        with pytest.raises(error, match=words):
            prune(store, min_age_s=0)
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
    s3_server: SeaweedFS, s3_store_url: str, tmp_path: Path
) -> None:
    store, maker = open_store(s3_store_url), ReleaseMaker(tmp_path)
    maker.publish(store, maker.collection("tracks", ["a", "b", "c"], unit_vectors(3)))
    bucket, _, prefix = s3_store_url.removeprefix("s3://").partition("/")
    client, key = s3_server.client(), f"{prefix}/{blob_key('ab' * 32)}"
    upload_id = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"x" * 1000)
    before = keys_of(store)

    assert len(plan_prune(store, keep_last=1, min_age_s=3600).orphans) == 0  # young: it may still be going on
    assert len(prune(store, min_age_s=3600).orphans) == 0
    assert len(store.list_uploads()) == 1
    time.sleep(2.1)  # S3 stamps whole seconds
    plan = prune(store, min_age_s=1)
    assert [upload.key for upload in plan.orphans] == [blob_key("ab" * 32)]
    assert store.list_uploads() == ()
    assert keys_of(store) == before


@pytest.mark.case(9)
def test_temporary_files_that_nobody_finished_go_once_old(history: History) -> None:
    temporary = history.store._temp_path(blob_key("ab" * 32))
    temporary.write_bytes(b"half a blob")
    assert prune(history.store).orphans == []
    os.utime(temporary, (time.time() - 2 * DAY_S, time.time() - 2 * DAY_S))
    assert len(prune(history.store).orphans) == 1
    assert not temporary.exists()
