"""Killing processes at the writes that a run makes, and watching the store from outside."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from urllib.parse import unquote, urlsplit

from flow.worlds import is_running
from support.fault_proxy import DROP_RESPONSE, NONE, RESET, Fault, Request

from indexing.errors import NightcrateError
from indexing.release.commit import missing_blobs, read_release, release_numbers
from indexing.release.verify import verify_release
from indexing.store import Store, open_store

POLL_S = 0.1
STOP_S = 20.0
PHASES = {"before": RESET, "after": DROP_RESPONSE}


def step_of(request: Request) -> str | None:
    """A name for a write that is the same in every run, None for a request that only reads."""
    parts = urlsplit(request.path)
    if request.method not in ("PUT", "POST", "DELETE"):
        return None
    key = unquote(parts.path).partition("/")[2].partition("/")[2]
    for names, one in ((r"/leases/.*", "/leases/N"), (r"/preflight/[0-9a-f]{32}$", "/preflight/N")):
        key = re.sub(names, one, key)  # of the run, not of the step
    return f"{request.method} {key.partition('/')[2]}"


class KillAtWrites:
    """A plan for the fault proxy: kills at the first write at which it has not killed yet, before it reaches the
    server, and next time right after, so that its answer is lost.
    """

    def __init__(self, is_wanted: Callable[[str], bool] = bool) -> None:
        self._is_wanted = is_wanted
        self._kill: Callable[[], object] | None = None
        self.killed_at: list[tuple[str, str]] = []

    def arm(self, kill: Callable[[], object]) -> None:
        """`kill` is called once, in the proxy's thread."""
        self._kill = kill

    def __call__(self, request: Request) -> Fault:
        step = step_of(request)
        if step is None or self._kill is None or not self._is_wanted(step):
            return NONE
        for phase, fault in PHASES.items():
            if (step, phase) not in self.killed_at:
                self.killed_at.append((step, phase))
                kill, self._kill = self._kill, None
                kill()
                return fault
        return NONE


class Reader:
    """Polls the store from a thread, as a server that follows releases does; notes every release that is incomplete."""

    def __init__(self, store_url: str) -> None:
        self._store = open_store(store_url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll_for_ever, name="reader")
        self.seen: list[int] = []
        self.num_polls = 0
        self.problems: list[str] = []

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _poll_for_ever(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._poll()
            except NightcrateError as error:
                self.problems.append(str(error))

    def _poll(self) -> None:
        release = read_release(self._store)
        if missing := missing_blobs(self._store, release):
            self.problems.append(f"release {release.number} lacks {missing}")
        if release.number not in self.seen:
            verify_release(self._store, release)
            self.seen.append(release.number)
        self.num_polls += 1


def check_whole(store: Store) -> None:
    """Every release that can be seen is complete, and their numbers have no gap."""
    numbers = release_numbers(store)
    assert numbers == list(range(1, len(numbers) + 1))
    for number in numbers:
        verify_release(store, read_release(store, number))


def wait_for(happens: Callable[[], bool], limit_s: float, what: str) -> None:
    deadline = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < deadline, f"expected {what} within {limit_s:g} s"
        time.sleep(0.005)


def kill_all(pids: Iterable[int]) -> int:
    """SIGKILL to each that still is there; returns how many."""
    num_killed = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            num_killed += 1
    return num_killed


def wait_until_gone(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + STOP_S
    left = set(pids)
    while left := {pid for pid in left if is_running(pid)}:
        assert time.monotonic() < deadline, f"expected these processes to end: {left}"
        time.sleep(0.02)
