"""One run at a time: a lease in the store, kept alive by a heartbeat. It saves work; the commit rule prevents damage.

`leases/N.json` is created only if absent, so of any number of contenders one gets N. The highest number is the lease;
its holder rewrites it at every heartbeat. It is free once it says so, or once the store's clock is `ttl_s` past the
last heartbeat. Every holder writes a random token, so that two holders of the same name have different leases. A holder
that finds its lease expired, and no later one, takes the next number; a prune gives up.

A prune says in its lease that it deletes. A process that makes a release live without holding the lease, or after
losing it, waits for that prune to end and then checks that every blob is there (`wait_for_prune`).
"""

import json
import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from indexing import clock
from indexing.errors import DamagedError, ObjectNotFound, PublishConflict, StoreUnavailable
from indexing.store import ObjectInfo, Store

logger = logging.getLogger(__name__)

PREFIX = "leases/"
TTL_S = 120.0
POLL_S = 5.0


class Lease:
    """A lease that this process holds. `check` before anything that only the holder may do."""

    def __init__(self, store: Store, number: int, body: dict[str, object], ttl_s: float, last_beat: float) -> None:
        """`last_beat`: `clock.elapsed_s` right before the lease was written."""
        self.store, self.number, self.ttl_s = store, number, ttl_s
        self._body, self._last_beat = body, last_beat
        self._lost_to: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)

    def check(self) -> None:
        """Raises PublishConflict when another run has taken over, or may have since the last successful heartbeat."""
        if self._lost_to is None and clock.elapsed_s() - self._last_beat < self.ttl_s:
            return
        taken = (
            f"{self._lost_to} has taken it over" if self._lost_to else f"no heartbeat got through for {self.ttl_s:g} s"
        )
        raise PublishConflict(f"{self.store.url}: this run has lost its lease: {taken}; start again")

    def _keep_alive(self) -> None:
        while not clock.wait(self._ended, self.ttl_s / 4):
            try:
                self._beat()
            except StoreUnavailable as error:  # `check` raises when heartbeats fail for too long
                logger.warning("lease: a heartbeat failed: %s", error)

    def _beat(self) -> None:
        started = clock.elapsed_s()
        newest = _newest(self.store)
        if newest is not None and _number(newest) > self.number:
            self._lost_to = _owner(self.store, newest)
            self._ended.set()
        elif started - self._last_beat < self.ttl_s:
            self.store.put(_key(self.number), _encode(self._body))
            if clock.elapsed_s() - self._last_beat < self.ttl_s:  # else it had expired before this heartbeat arrived
                self._last_beat = started
        elif self._body["deletes"]:  # others have seen the lease expire, and rely on that
            self._ended.set()
        elif self.store.create(_key(self.number + 1), _encode(self._body)):  # it was free for anyone to take
            self.number, self._last_beat = self.number + 1, started

    def _end(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._lost_to is not None:
            return
        try:
            self.store.put(_key(self.number), _encode({**self._body, "is_free": True}))
        except StoreUnavailable as error:  # what the run has done is kept; the lease expires
            logger.warning("lease: could not give it back, the next run waits up to %g s: %s", self.ttl_s, error)


@contextmanager
def hold_lease(
    store: Store, owner: str, *, wait: bool, deletes: bool = False, ttl_s: float = TTL_S, poll_s: float = POLL_S
) -> Iterator[Lease]:
    """Holds the lease of `store` while the block runs.

    `owner` names this run for people; two runs may have the same name. `deletes` is for a prune: `wait_for_prune`
    waits for it. Raises PublishConflict when another run holds the lease, unless `wait`: then waits until that run
    ends or its heartbeats stop.
    """
    body: dict[str, object] = {"owner": owner, "token": uuid.uuid4().hex, "is_free": False, "deletes": deletes}
    lease = _acquire(store, body, wait, ttl_s, poll_s)
    lease._thread.start()
    try:
        yield lease
    finally:
        lease._end()


def wait_for_prune(store: Store, *, ttl_s: float = TTL_S, poll_s: float = POLL_S) -> None:
    """Returns once every prune has ended that might not know of what was written to the store before this call.

    A prune that takes the lease later also reads releases and pins later, so it finds what was written. One with an
    expired lease is not waited for: it stops the next time it checks its lease.
    """
    now, newest = store.now(), _newest(store)
    waits_for = newest.key if newest else None
    while newest is not None and newest.key == waits_for and _is_deleting(store, newest, now, ttl_s):
        logger.info("waiting for %s, which may delete blobs of %s", _owner(store, newest), store.url)
        clock.sleep(poll_s)
        now, newest = store.now(), _newest(store)


def _is_deleting(store: Store, info: ObjectInfo, now: float, ttl_s: float) -> bool:
    return _read(store, info).get("deletes") is True and not _is_free(store, info, now, ttl_s)


def _acquire(store: Store, body: dict[str, object], wait: bool, ttl_s: float, poll_s: float) -> Lease:
    is_logged = False
    while True:
        now, newest = store.now(), _newest(store)
        if newest is None or _is_free(store, newest, now, ttl_s):
            number, started = _number(newest) + 1 if newest else 1, clock.elapsed_s()
            if store.create(_key(number), _encode(body)) and _newest_number(store) == number:
                _delete_older(store, number)
                return Lease(store, number, body, ttl_s, started)
            continue
        holder = _owner(store, newest)
        if not wait:
            age_s = max(0.0, now - newest.modified)
            raise PublishConflict(
                f"{store.url}: {holder} has the lease, its last sign of life was {age_s:.0f} s ago; wait for it, or "
                f"set run.on_conflict: wait (if it was killed, it is taken over in {ttl_s - age_s:.0f} s)"
            )
        if not is_logged:
            logger.info("waiting for %s, which has the lease of %s", holder, store.url)
            is_logged = True
        clock.sleep(poll_s)


def _is_free(store: Store, newest: ObjectInfo, now: float, ttl_s: float) -> bool:
    """`now`: the store's clock, read before the lease was listed: so a heartbeat looks no older than it was then."""
    return _read(store, newest).get("is_free") is True or now - newest.modified > ttl_s


def _read(store: Store, info: ObjectInfo) -> dict[str, object]:
    """A lease file that cannot be read says nothing: it expires by its age."""
    try:
        body = json.loads(store.get(info.key, max_bytes=10_000))
    except (ObjectNotFound, DamagedError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _owner(store: Store, info: ObjectInfo) -> str:
    return str(_read(store, info).get("owner", "another run"))


def _newest(store: Store) -> ObjectInfo | None:
    return next(reversed([info for info in store.list(PREFIX) if _is_lease(info.key)]), None)


def _newest_number(store: Store) -> int | None:
    newest = _newest(store)
    return _number(newest) if newest else None


def _delete_older(store: Store, number: int) -> None:
    """The previous one stays, so that a stalled contender for its number still finds it taken."""
    for info in list(store.list(PREFIX)):
        if _is_lease(info.key) and _number(info) < number - 1:
            store.delete(info.key)


def _is_lease(key: str) -> bool:
    name = key.removeprefix(PREFIX).removesuffix(".json")
    return name.isascii() and name.isdigit() and len(name) == 20


def _number(info: ObjectInfo) -> int:
    return int(info.key.removeprefix(PREFIX).removesuffix(".json"))


def _key(number: int) -> str:
    return f"{PREFIX}{number:020d}.json"


def _encode(body: dict[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()
