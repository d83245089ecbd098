"""A prune during a publish, a rollback or a reader: none of them loses a blob."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.history import DAY_S, History, old_history, prune, still_ours
from support.report import Trials
from support.tiny_release import make_release, send_files, unit_vectors

from indexing import open_release
from indexing.errors import DamagedError, PublishConflict, StoreUnavailable
from indexing.release.commit import commit_release, publish_release, read_release, resend_missing
from indexing.release.lease import hold_lease
from indexing.release.manifest import Release
from indexing.release.retention import apply_prune, pin, plan_prune
from indexing.release.rollback import roll_back
from indexing.release.verify import verify_release
from indexing.store.blobs import blob_key


@pytest.fixture
def history(tmp_path: Path) -> History:
    return old_history(tmp_path)


MOMENTS = ["before the upload", "after the upload", "after the commit"]


@pytest.mark.case(16)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_publish_that_reuses_an_old_blob_loses_none_to_a_stalled_prune(history: History, moment: str) -> None:
    """Without the lease, as a prune would run that has stalled, been taken over, and not noticed yet."""
    plan = plan_prune(history.store, keep_last=1, min_age_s=DAY_S)
    release = replace(make_release(5, history.collection(2)), parent=4)  # what release 2 held, needed again
    assert {blob_key(sha256) for sha256 in release.blobs()} & {info.key for info in plan.to_delete}

    def upload() -> None:
        send_files(history.store, history.files(release), parent=read_release(history.store, 4))

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
def test_a_prune_that_deletes_after_its_last_check_is_repaired_after_the_commit(history: History) -> None:
    """The prune stalled between its check of the blob's age and its DELETE."""
    release = replace(make_release(5, history.collection(2)), parent=4)
    sent: list[str] = []

    def upload() -> None:
        send_files(history.store, history.files(release), lambda blob: sent.append(blob.sha256))

    upload()
    commit_release(history.store, release)
    index = release.collections[0].shards[0].index
    history.store.delete(blob_key(index.sha256))
    resend_missing(history.store, release, upload)
    verify_release(history.store, release)
    history.store.delete(blob_key(index.sha256))
    with pytest.raises(StoreUnavailable, match="are deleted or altered each time they are sent"):
        resend_missing(history.store, release, lambda: None)


def publish_reused(history: History, release: Release) -> None:
    """What a night does, without its lease."""
    parent = read_release(history.store) if release.parent else None

    def upload() -> None:
        send_files(history.store, history.files(release), parent=parent)

    publish_release(history.store, release, upload, still_ours)


@pytest.mark.case(16)
def test_many_publishes_prunes_and_rollbacks_that_take_turns_lose_nothing(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds the lease, as the commands do. Every release reuses blobs that the prunes, of age 0, would delete."""
    monkeypatch.setattr("indexing.release.retention.MIN_AGE_S", 0.0)
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

    def prune_blobs() -> None:
        plan = plan_prune(history.store, keep_last=1, min_age_s=0)
        # At age 0 every write of this moment is an orphan, such as a lease that another thread is about to create.
        apply_prune(history.store, replace(plan, to_abort=()), still_ours)

    def go_back() -> None:
        current = read_release(history.store)
        whole = [number for number in range(1, current.number) if history.has(read_release(history.store, number))]
        if whole:
            roll_back(history.store, whole[0])

    threads = [
        threading.Thread(target=in_turn, args=(prune_blobs,), name="prune"),
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
def test_a_reader_keeps_serving_during_a_prune_and_opens_the_current_release(history: History, tmp_path: Path) -> None:
    readers = [open_release(history.store.url, number=number, cache_dir=tmp_path / "cache") for number in (2, 4)]
    queries = unit_vectors(3)
    before = [reader.search(queries, k=3).item_ids.tolist() for reader in readers]
    prune(history.store)
    assert [reader.search(queries, k=3).item_ids.tolist() for reader in readers] == before
    with pytest.raises(DamagedError, match="found nothing there"):
        open_release(history.store.url, number=2, cache_dir=tmp_path / "another cache")
    assert open_release(history.store.url, cache_dir=tmp_path / "another cache").release.number == 4


@pytest.mark.case(16)
def test_a_pin_during_a_prune_waits_for_it_and_its_blobs_stay(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prune has planned to delete the release, and checks the pins again before it deletes."""
    is_waiting, pinned = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        is_waiting.set()
        time.sleep(0.01)

    def pin_two() -> None:
        pin(history.store, 2)
        pinned.set()

    monkeypatch.setattr("indexing.clock.sleep", sleep)
    with hold_lease(history.store, "prune", wait=False, deletes=True) as lease:
        plan = plan_prune(history.store, keep_last=1, min_age_s=DAY_S)
        thread = threading.Thread(target=pin_two)
        thread.start()
        assert is_waiting.wait(5)
        assert not pinned.is_set()
        assert apply_prune(history.store, plan, lease.check) == 2
    thread.join()
    assert pinned.is_set()
    verify_release(history.store, read_release(history.store, 2))


@pytest.mark.case(16)
def test_a_pin_during_a_night_does_not_wait(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.clock.sleep", lambda seconds: pytest.fail("waits"))
    with hold_lease(history.store, "a night", wait=False):
        pin(history.store, 2)


@pytest.mark.case(16)
def test_a_publish_that_was_stopped_before_its_commit_waits_for_the_prune_that_overtook_it(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends again what the prune deletes despite the new release."""
    release = replace(make_release(5, history.collection(2)), parent=4)  # what release 2 held
    with hold_lease(history.store, "prune", wait=False, deletes=True) as lease:
        plan = plan_prune(history.store, keep_last=1, min_age_s=DAY_S)
        stopped = [lambda: [history.store.delete(info.key) for info in plan.to_delete], lambda: lease._end()]
        monkeypatch.setattr("indexing.clock.sleep", lambda seconds: stopped.pop(0)())
        publish_reused(history, release)
        assert stopped == []
    verify_release(history.store, release)


@pytest.mark.case(16)
def test_a_prune_gives_up_what_a_new_release_needs(history: History) -> None:
    plan = plan_prune(history.store, keep_last=1, min_age_s=DAY_S)
    release = replace(make_release(5, history.collection(2)), parent=4)
    commit_release(history.store, release)  # by a run that lost its lease, whose blobs are as old as they were
    assert apply_prune(history.store, plan, still_ours) == 2
    verify_release(history.store, release)
