"""Which blobs a store must keep, and deleting the others. Release files are never deleted.

A blob stays while a protected release lists it: the last few, the pinned ones, the young ones. It also stays while it
is young itself, since a publish that isn't committed yet may need it. All ages are by the store's own clock.

Against a publish that reuses an old blob: both hold the store's lease, so they don't run at once. Should a prune have
stalled and lost its lease unnoticed, three things are left: a publish trusts only blobs of the release it follows,
which is protected, and sends any other anew, which makes it young, and so does a rollback; a prune looks at a blob's
age again right before it deletes; and a publish looks for all its blobs again right after its commit, and sends what is
missing.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from indexing.errors import ConfigError, DamagedError, StoreUnavailable
from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release, release_key
from indexing.store import ObjectInfo, PendingUpload, Store
from indexing.store.blobs import blob_key

logger = logging.getLogger(__name__)

BLOBS_PREFIX = "blobs/"
PINS_PREFIX = "pins/"
CLOCK_TOLERANCE_S = 300.0
LONGEST_WRITE_S = 3600.0
"""Of a small object that is written without holding the lease."""


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """What a prune keeps and what it would delete."""

    protected: Mapping[int, str]
    """release number → why its blobs stay."""
    doomed: Sequence[ObjectInfo]
    """Blobs that no protected release lists and that are old enough."""
    orphans: Sequence[PendingUpload]
    """Uploads that have begun long ago and never finished."""
    num_kept: int
    num_young: int
    """Unlisted blobs that stay because they are young."""

    @property
    def doomed_bytes(self) -> int:
        return sum(info.size_bytes for info in self.doomed)


def plan_prune(store: Store, *, keep_last: int, min_age_s: float) -> PrunePlan:
    """Reads everything that a prune depends on; writes nothing.

    Raises DamagedError when a release file is missing or cannot be read, StoreUnavailable when a listing fails or the
    store's clock contradicts its objects: then nothing may be deleted.
    """
    if keep_last < 1 or min_age_s < 0:
        raise ConfigError(
            f"retention: expected keep_last from 1 and min_age from 0, got {keep_last} and {min_age_s:g} s"
        )
    now = store.now()
    blobs = list(store.list(BLOBS_PREFIX))  # before the releases, so that none of these is listed by one still to come
    releases = read_all_releases(store)
    times = {number: release_time(store, number) for number in releases}
    check_clock(store, now, [*(info.modified for info in blobs), *times.values()])
    ages = {number: now - modified for number, modified in times.items()}
    protected = protect(ages, pinned_among(store, releases), keep_last=keep_last, min_age_s=min_age_s)
    live = {blob_key(sha256) for number in protected for sha256 in releases[number].blobs()}
    unlisted = [info for info in blobs if info.key not in live]
    doomed = [info for info in unlisted if now - info.modified > min_age_s]
    orphans = [upload for upload in store.list_uploads() if now - upload.started > orphan_age_s(upload, min_age_s)]
    return PrunePlan(
        protected=protected,
        doomed=doomed,
        orphans=orphans,
        num_kept=len(blobs) - len(unlisted),
        num_young=len(unlisted) - len(doomed),
    )


def orphan_age_s(upload: PendingUpload, min_age_s: float) -> float:
    """The age from which nobody is still at work on an upload, in seconds.

    Who sends blobs holds the lease, and so isn't at work during a prune. Leases, pins and probes are written without
    it: theirs stay for `LONGEST_WRITE_S` at least, however small `min_age_s` is.
    """
    return min_age_s if upload.key.startswith(BLOBS_PREFIX) else max(min_age_s, LONGEST_WRITE_S)


def protect(ages: Mapping[int, float], pinned: Iterable[int], *, keep_last: int, min_age_s: float) -> dict[int, str]:
    """The releases whose blobs stay, and why; `ages` in seconds by release number."""
    protected = {number: "young" for number in sorted(ages) if ages[number] <= min_age_s}
    protected |= {number: "pinned" for number in pinned if number in ages}
    protected |= dict.fromkeys(sorted(ages)[-keep_last:], f"one of the last {keep_last}")
    return dict(sorted(protected.items()))


def read_all_releases(store: Store) -> dict[int, Release]:
    """Every release by number. Raises DamagedError when one is unreadable or the listing has a gap."""
    numbers = release_numbers(store)
    missing = sorted(set(range(1, (numbers[-1] if numbers else 0) + 1)) - set(numbers))
    if not missing and store.head(release_key(len(numbers) + 1)) is not None:
        missing = [len(numbers) + 1]
    if missing:
        raise DamagedError(
            f"{store.url}: expected release files from 1 to {max(numbers, default=0)} without a gap, the listing lacks "
            f"{missing[0]}; nothing is deleted"
        )
    return {number: read_release(store, number) for number in numbers}


def release_time(store: Store, number: int) -> float:
    """When the store took the release in, in unix seconds by its clock."""
    info = store.head(release_key(number))
    if info is None:
        raise DamagedError(f"{store.url}: release {number} vanished while it was looked at; nothing is deleted")
    return info.modified


def check_clock(store: Store, now: float, times: Iterable[float]) -> None:
    """Raises StoreUnavailable when the store's clock contradicts its objects or this machine's clock."""
    if abs(now - time.time()) > CLOCK_TOLERANCE_S:
        raise StoreUnavailable(
            f"{store.url}: expected its clock and this machine's to agree, got {abs(now - time.time()):.0f} s between "
            "them: one is wrong, set it; nothing is deleted"
        )
    newest = max(times, default=now)
    if newest > now + CLOCK_TOLERANCE_S:
        raise StoreUnavailable(
            f"{store.url}: expected a clock ahead of the objects it stamped, got one {newest - now:.0f} s behind the "
            "newest of them; nothing is deleted"
        )


def apply_prune(store: Store, plan: PrunePlan, check: Callable[[], None]) -> int:
    """Deletes what the plan names and is still as it was planned; returns how many blobs went.

    `check` is called before each deletion and raises when this process may not go on (its lease is lost).
    """
    deleted = 0
    for info in plan.doomed:
        check()
        found = store.head(info.key)
        if found is None or found.modified > info.modified:
            continue  # sent anew since the plan: a publish wants it
        store.delete(info.key)
        deleted += 1
    for upload in plan.orphans:
        check()
        store.abort_upload(upload)
    return deleted


def pin(store: Store, number: int) -> None:
    """Protects a release from `prune`. Raises ConfigError where there is no such release."""
    read_release(store, number)
    store.put(_pin_key(number), b"{}")


def unpin(store: Store, number: int) -> None:
    """Takes the pin away. Raises ConfigError when the release is not pinned."""
    if store.head(_pin_key(number)) is None:
        raise ConfigError(f"{store.url}: release {number} is not pinned; pinned: {pinned_numbers(store) or 'none'}")
    store.delete(_pin_key(number))


def pinned_among(store: Store, numbers: Iterable[int]) -> list[int]:
    """Those of `numbers` that are pinned. Asks for each by name: a listing that lacks a pin would cost its release."""
    return [number for number in numbers if store.head(_pin_key(number)) is not None]


def pinned_numbers(store: Store) -> list[int]:
    """The pinned releases, ascending."""
    names = [info.key.removeprefix(PINS_PREFIX).removesuffix(".json") for info in store.list(PINS_PREFIX)]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _pin_key(number: int) -> str:
    return f"{PINS_PREFIX}{number:020d}.json"
