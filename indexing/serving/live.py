"""A release that follows its store: serves one, and switches to a newer one once that passes every check."""

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from indexing.dense.params import K
from indexing.errors import DamagedError
from indexing.release.commit import newest_valid_release, release_numbers
from indexing.release.signing import load_trusted_keys
from indexing.search.open import open_release
from indexing.search.queries import check_texts
from indexing.search.results import OpenRelease
from indexing.store import open_store
from indexing.vectors import NORM_TOLERANCE

if TYPE_CHECKING:
    from indexing.release.manifest import Release


logger = logging.getLogger(__name__)


class LiveRelease:
    """`search` answers from the release that is loaded; `refresh`, called from time to time, follows the store.

    Any number of threads may search while one refreshes: a search ends on the release it began on. While a refresh
    loads, both releases are in memory. `options` are those of `open_release` except `number`; `canaries` are texts that
    a new release must answer before it is served.
    """

    def __init__(self, url: str, *, canaries: Sequence[str] = (), **options: Any) -> None:
        if canaries:
            check_texts(canaries)
        self._url, self._canaries, self._options = url, list(canaries), options
        self._refreshing = threading.Lock()
        self._keys = load_trusted_keys(options.get("trusted_keys"))
        self._current = self._open(None)

    @property
    def release(self) -> "Release":
        """The release that is served now."""
        return self._current.release

    def search(self, queries: Any, k: int = 10, collections: str | Sequence[str] | None = None) -> Any:
        """As `OpenRelease.search`."""
        return self._current.search(queries, k, collections)

    def refresh(self) -> bool:
        """Serves the store's current release from now on; False when that is served already.

        The new one is loaded next to the old one, every digest is checked, and the canaries run. Then one assignment
        switches, and the old one's memory is freed with its last search. Where the newest is damaged or no trusted key
        has signed it, the newest valid one between the two is served. Raises what `open_release` raises for the newest
        release where no newer one is valid, and DamagedError when a canary fails: the old release keeps serving then.
        """
        with self._refreshing:
            store, before = open_store(self._url, self._options.get("s3")), self.release.number
            newest = release_numbers(store)[-1:]
            if not newest or newest[0] <= before:
                return False
            opened = self._open(newest_valid_release(store, self._keys, after=before).number)
            self._current = opened
        logger.info("%s: serving release %d, previously %d", self._url, opened.release.number, before)
        return True

    def _open(self, number: int | None) -> OpenRelease:
        opened = open_release(self._url, number, **self._options)
        if self._canaries:
            run_canaries(opened, self._canaries)
        return opened


def run_canaries(opened: OpenRelease, canaries: list[str]) -> None:
    """Raises DamagedError unless every canary finds items with scores that a cosine can have."""
    k = min(K, sum(shard.num_items for shard in opened.shards))
    scores = opened.search(canaries, k=k).scores
    bad = np.flatnonzero(~(np.isfinite(scores) & (np.abs(scores) <= 1 + NORM_TOLERANCE)).all(axis=1))
    if bad.size:
        raise DamagedError(
            f"release {opened.release.number}: expected cosines for the canary {canaries[bad[0]]!r}, "
            f"got {scores[bad[0]].tolist()}"
        )
