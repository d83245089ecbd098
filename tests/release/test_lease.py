"""One run at a time: who holds the lease, who gets it next, and how a holder learns that it has lost it."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.report import Trials

from indexing.errors import PublishConflict, StoreUnavailable
from indexing.release.lease import Lease, hold_lease
from indexing.store import ObjectInfo, Store, open_store
from indexing.store.local import LocalStore

TTL_S = 2.0
pytestmark = pytest.mark.case(23)


@pytest.fixture
def lease_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def taken() -> Iterator[ExitStack]:
    """Leases entered here are released at the end of the test."""
    with ExitStack() as stack:
        yield stack


def silence(lease: Lease) -> None:
    """What SIGKILL does to the holder: no more heartbeats, and the lease is not released."""
    lease._ended.set()
    lease._thread.join()


def test_a_second_run_is_refused_naming_the_first(store_url: str) -> None:
    store = open_store(store_url)
    with (
        hold_lease(store, "run one", wait=False),
        pytest.raises(PublishConflict, match=r"run one has the lease, .*; wait for it, or set run\.on_conflict: wait"),
        hold_lease(store, "run two", wait=False),
    ):
        pass
    with hold_lease(store, "run three", wait=False) as lease:  # released, so free immediately
        lease.check()


def test_of_a_run_that_may_be_dead_the_error_says_only_when_it_was_last_alive(
    lease_store: Store, taken: ExitStack
) -> None:
    lease = taken.enter_context(hold_lease(lease_store, "process 1", wait=False))
    silence(lease)
    os.utime(lease_store._path("leases/00000000000000000001.json"), (time.time() - 50,) * 2)  # type: ignore[attr-defined]
    with (
        pytest.raises(PublishConflict, match=r"process 1 has the lease, its last sign of life was 5\d s ago") as caught,
        hold_lease(lease_store, "two", wait=False),
    ):
        pass
    assert "if it was killed, it is taken over in " in str(caught.value)
    assert "running" not in str(caught.value)


def test_a_run_that_waits_starts_as_soon_as_the_first_has_ended(lease_store: Store) -> None:
    order: list[str] = []
    is_waiting = threading.Event()

    def second() -> None:
        is_waiting.set()
        with hold_lease(lease_store, "two", wait=True, ttl_s=60, poll_s=0.02):
            order.append("two has it")

    with ThreadPoolExecutor(1) as pool:
        with hold_lease(lease_store, "one", wait=False, ttl_s=60):
            waiting = pool.submit(second)
            assert is_waiting.wait(5)
            time.sleep(0.2)
            order.append("one ends")
        waiting.result(timeout=5)
    assert order == ["one ends", "two has it"]


def test_the_lease_is_released_when_the_block_raises(lease_store: Store) -> None:
    with pytest.raises(ValueError, match="of the run"), hold_lease(lease_store, "one", wait=False):
        raise ValueError("of the run")
    with hold_lease(lease_store, "two", wait=False):
        pass


def test_heartbeats_keep_a_run_that_takes_long(lease_store: Store) -> None:
    with hold_lease(lease_store, "one", wait=False, ttl_s=TTL_S) as lease:
        end = time.monotonic() + 2 * TTL_S
        while time.monotonic() < end:
            lease.check()
            with pytest.raises(PublishConflict), hold_lease(lease_store, "two", wait=False, ttl_s=TTL_S):
                pass
            time.sleep(0.02)


class Ticking(LocalStore):
    """A store whose clock moves on by ten seconds whenever it is read, however busy the machine is."""

    time = 0.0

    def now(self) -> float:
        self.time += 10
        return self.time


def test_a_killed_holder_is_taken_over_after_its_time_and_not_before(tmp_path: Path, taken: ExitStack) -> None:
    store = Ticking(tmp_path / "store")
    killed = taken.enter_context(hold_lease(store, "killed", wait=False, ttl_s=60))
    silence(killed)
    (last_beat,) = (info.modified for info in store.list("leases/"))
    store.time = last_beat
    with hold_lease(store, "next", wait=True, ttl_s=60, poll_s=0) as lease:
        assert store.time - last_beat == pytest.approx(70)  # refused at 10, 20 … 60 s
        lease.check()
        killed._last_beat -= 70  # as much time has passed for the holder
        with pytest.raises(PublishConflict, match="has lost its lease"):
            killed.check()


def test_a_holder_that_was_stalled_learns_who_has_taken_over(lease_store: Store, taken: ExitStack) -> None:
    stalled = taken.enter_context(hold_lease(lease_store, "stalled", wait=False, ttl_s=30))
    silence(stalled)
    os.utime(lease_store._path("leases/00000000000000000001.json"), (0, 0))  # type: ignore[attr-defined]
    with hold_lease(lease_store, "the next run", wait=False, ttl_s=30):
        stalled.check()  # no heartbeat yet that could detect it
        stalled._beat()
        with pytest.raises(PublishConflict, match="the next run has taken it over; start again"):
            stalled.check()
        stalled._end()  # and leaves the lease alone
        with pytest.raises(PublishConflict), hold_lease(lease_store, "third", wait=False, ttl_s=30):
            pass


class CutOff(LocalStore):
    """A store that a network failure cuts off after a while."""

    is_cut = False

    def put(self, key: str, data: bytes) -> None:
        if self.is_cut:
            raise StoreUnavailable("cut off")
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        if self.is_cut:
            raise StoreUnavailable("cut off")
        return super().create(key, data)


def test_a_holder_without_heartbeats_stops_trusting_its_lease(tmp_path: Path) -> None:
    store = CutOff(tmp_path / "store")
    with hold_lease(store, "one", wait=False, ttl_s=TTL_S) as lease:
        store.is_cut = True
        deadline = time.monotonic() + 30
        with pytest.raises(PublishConflict, match=r"no heartbeat got through for 2 s"):
            while time.monotonic() < deadline:
                lease.check()
                time.sleep(0.01)
        assert time.monotonic() - lease._last_beat >= TTL_S, "it trusted the lease until then"


def test_a_run_that_cannot_release_the_lease_has_still_succeeded(tmp_path: Path) -> None:
    store = CutOff(tmp_path / "store")
    with hold_lease(store, "one", wait=False, ttl_s=60):
        store.is_cut = True
    assert [info.key for info in store.list("leases/")] == ["leases/00000000000000000001.json"]


def test_of_twenty_contenders_one_gets_a_new_lease(store_url: str, trials: Trials) -> None:
    contend(store_url, trials)


def test_of_twenty_contenders_one_takes_over_from_a_killed_run(
    lease_store: Store, taken: ExitStack, trials: Trials
) -> None:
    silence(taken.enter_context(hold_lease(lease_store, "killed", wait=False, ttl_s=60)))
    os.utime(lease_store._path("leases/00000000000000000001.json"), (0, 0))  # type: ignore[attr-defined]
    contend(lease_store.url, trials)


def contend(store_url: str, trials: Trials) -> None:
    """Twenty concurrent runs, each with its own client; the winner holds the lease until all others have given up."""
    barrier, done = threading.Barrier(20), threading.Event()

    def run(number: int) -> bool:
        store = open_store(store_url)
        store.head("leases/x")
        barrier.wait()
        try:
            with hold_lease(store, f"run {number}", wait=False, ttl_s=60):
                done.wait(30)
        except PublishConflict:
            return False
        return True

    with ThreadPoolExecutor(20) as pool:
        runs = [pool.submit(run, number) for number in range(20)]
        while sum(one.done() for one in runs) < 19:
            time.sleep(0.02)
        done.set()
        won = sum(one.result() for one in runs)
    trials.tried(20)
    assert won == 1
    trials.held(20)


def test_waiting_runs_hold_it_one_after_the_other(lease_store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        with hold_lease(lease_store, f"run {number}", wait=True, ttl_s=30, poll_s=0.01):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert most == [1] * 6
    assert len(list(lease_store.list("leases/"))) <= 2  # older ones are deleted


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"[" * 9_000, b"x" * 20_000, b'{"is_free": "yes"}'])
def test_a_lease_file_that_cannot_be_read_blocks_until_its_time_is_over(lease_store: Store, body: bytes) -> None:
    key = "leases/00000000000000000007.json"
    lease_store.put(key, body)
    with pytest.raises(PublishConflict), hold_lease(lease_store, "one", wait=False, ttl_s=30):
        pass
    os.utime(lease_store._path(key), (0, 0))  # type: ignore[attr-defined]
    with hold_lease(lease_store, "one", wait=False, ttl_s=30) as lease:
        assert lease.number == 8


def test_other_names_next_to_the_leases_are_ignored(lease_store: Store) -> None:
    for name in ("latest.json", "7.json", "9" * 21 + ".json"):
        lease_store.put(f"leases/{name}", b"{}")
    with hold_lease(lease_store, "one", wait=False) as lease:
        assert lease.number == 1


def test_two_runs_of_one_name_never_hold_it_both(lease_store: Store) -> None:
    """Containers that cron starts: one host name, process 1, the same second."""
    owner = "process 1 on nightly, started 2026-01-31 02:00:00 UTC"
    real_list, is_second_done = lease_store.list, list[bool]()

    def list_late(prefix: str = "") -> Iterator[ObjectInfo]:
        """The second run takes the lease right after the first has seen that it is free."""
        found = list(real_list(prefix))
        if not is_second_done:
            is_second_done.append(True)
            second = taken.enter_context(hold_lease(open_store(lease_store.url), owner, wait=False, ttl_s=30))
            second.check()
        return iter(found)

    lease_store.list = list_late  # type: ignore[method-assign, assignment]
    with (
        ExitStack() as taken,
        pytest.raises(PublishConflict, match=r"process 1 on nightly, .* has the lease"),
        hold_lease(lease_store, owner, wait=False, ttl_s=30),
    ):
        pass


def test_a_lease_expires_while_the_machine_sleeps(lease_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lease(lease_store, "one", wait=False, ttl_s=30) as lease:
        silence(lease)
        lease.check()
        read_clock, ticking = time.clock_gettime, time.monotonic()
        counts_on = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: read_clock(clock) + 40 * (clock == counts_on))
        assert time.monotonic() - ticking < 1  # the clock that has slept too
        with pytest.raises(PublishConflict, match="no heartbeat got through for 30 s"):
            lease.check()


def test_a_prune_whose_lease_has_expired_never_takes_it_back_and_a_night_does(
    lease_store: Store, taken: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have seen that no prune is running, and rely on it."""
    slept = 0.0
    monkeypatch.setattr("indexing.clock.elapsed_s", lambda: time.monotonic() + slept)
    for deletes in (True, False):
        lease = taken.enter_context(hold_lease(lease_store, "stalled", wait=False, deletes=deletes, ttl_s=30))
        silence(lease)
        number, slept = lease.number, slept + 40
        lease._beat()
        if deletes:
            with pytest.raises(PublishConflict, match="no heartbeat got through"):
                lease.check()
            lease._end()
        else:
            lease.check()
            assert lease.number == number + 1
            with pytest.raises(PublishConflict), hold_lease(lease_store, "another", wait=False, ttl_s=30):
                pass


def test_a_heartbeat_that_arrives_after_the_lease_has_expired_does_not_count(
    lease_store: Store, taken: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was sent in time, so that another run may have taken over before it arrived."""
    slept, put = 0.0, lease_store.put
    monkeypatch.setattr("indexing.clock.elapsed_s", lambda: time.monotonic() + slept)
    lease = taken.enter_context(hold_lease(lease_store, "stalled", wait=False, ttl_s=30))
    silence(lease)

    def put_late(key: str, data: bytes) -> None:
        nonlocal slept
        slept += 20
        put(key, data)

    monkeypatch.setattr(lease_store, "put", put_late)
    slept += 20
    lease._beat()
    with pytest.raises(PublishConflict, match="no heartbeat got through for 30 s"):
        lease.check()


def test_a_contender_that_stalls_while_it_looks_takes_no_live_lease(
    lease_store: Store, taken: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat that it has seen is old by the time it continues; the holder has sent another since."""
    silence(taken.enter_context(hold_lease(lease_store, "alive", wait=False, ttl_s=30)))
    contender, slept = LocalStore(Path(lease_store.url.removeprefix("file://"))), 0.0
    now, listing = contender.now, contender.list

    def list_and_stall(prefix: str = "") -> Iterator[ObjectInfo]:
        nonlocal slept
        found = list(listing(prefix))
        slept += 40
        return iter(found)

    monkeypatch.setattr(contender, "now", lambda: now() + slept)
    monkeypatch.setattr(contender, "list", list_and_stall)
    with (
        pytest.raises(PublishConflict, match="alive has the lease"),
        hold_lease(contender, "two", wait=False, ttl_s=30),
    ):
        pass
