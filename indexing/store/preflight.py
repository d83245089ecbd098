"""Does this store keep the one promise that publishing relies on: of many writers of a new key, exactly one wins?

Stores that accept the condition and ignore it exist (rclone's S3 server, JuiceFS' gateway: 50 winners of 50).
"""

from __future__ import annotations

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from indexing.errors import StoreUnavailable
from indexing.store.base import Store, no_conditional_put

PREFIX = "preflight/"
NUM_WRITERS = 8

logger = logging.getLogger(__name__)


def preflight(store: Store) -> None:
    """Race several creates of a scratch key, then delete it. Raises StoreUnavailable naming what is missing."""
    key = f"{PREFIX}{uuid.uuid4().hex}"
    try:
        bodies = [f"{key} {number}".encode() for number in range(NUM_WRITERS)]
        winners = _race(store, key, bodies)
        late = store.create(key, f"{key} late".encode())
        if len(winners) != 1 or late or store.get(key) != winners[0]:
            late_too = ", and a later one too" if late else ""
            found = f"of {NUM_WRITERS} writers of one new key {len(winners)} were told that they won{late_too}"
            raise no_conditional_put(store.url, found)
    finally:
        _clean(store, key)


def _race(store: Store, key: str, bodies: list[bytes]) -> list[bytes]:
    """All writers at the same time; returns the bodies whose writers were told that they won."""
    start = threading.Barrier(len(bodies))

    def write(body: bytes) -> bool:
        start.wait()
        return store.create(key, body)

    with ThreadPoolExecutor(len(bodies), thread_name_prefix="preflight") as pool:
        won = list(pool.map(write, bodies))
    return [body for body, is_winner in zip(bodies, won, strict=True) if is_winner]


def _clean(store: Store, key: str) -> None:
    try:
        store.delete(key)
    except StoreUnavailable as error:  # a publisher need not be allowed to delete, and the result is known
        logger.warning("left the scratch object %s: %s", store.describe(key), error)
