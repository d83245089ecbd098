"""Which blobs a store must keep, and deleting the others. Release files are never deleted.

A blob stays while a protected release lists it: the last few, the pinned ones, the young ones. It also stays while it
is young itself, since a publish that isn't committed yet may need it. All ages are by the store's own clock.

A prune and a publish that reuses an old blob both hold the store's lease, so they don't run at the same time. If one of
them is stopped, loses its lease and continues unnoticed, these safeguards remain:
- A publish trusts only blobs of the release it follows, which is protected, and blobs younger than `MIN_AGE_S`, which
  no prune deletes. It sends any other blob again, which makes it young. So does a rollback.
- A prune checks again while it deletes: a blob's age, its lease, and every few blobs the releases and pins.
- After its commit a publish or rollback waits for a prune that began before it, and checks all its blobs again. So
  does a pin.
What remains is a DELETE that reaches the store only after the prune's lease has expired.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from indexing import clock
from indexing.errors import ConfigError, DamagedError, StoreUnavailable
from indexing.release.commit import YOUNG_S, missing_blobs, read_release, release_numbers
from indexing.release.lease import wait_for_prune
from indexing.release.manifest import Release, release_key
from indexing.store import ObjectInfo, PendingUpload, Store
from indexing.store.blobs import BLOBS_PREFIX, blob_key, is_blob_key

PINS_PREFIX = "pins/"
OWN_PREFIXES = ("encoders/", "leases/", PINS_PREFIX, "preflight/", "releases/")
"""Of everything but blobs that nightcrate writes to a store."""
CLOCK_TOLERANCE_S = 300.0
MIN_AGE_S = YOUNG_S
"""The minimum age of what a prune deletes."""
RECHECK_EVERY = 10
"""Deletions between two checks of the releases and pins."""
_PIN_KEY = re.compile(r"pins/(\d{20})\.json", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """What a prune keeps and what it would delete."""

    protected: Mapping[int, str]
    """release number → why its blobs stay."""
    to_delete: Sequence[ObjectInfo]
    """Blobs that no protected release lists and that are old enough."""
    to_abort: Sequence[PendingUpload]
    """Uploads that began long ago and never finished."""
    newest: int
    """The number of the newest release that was read; 0 where there was none."""
    min_age_s: float
    num_kept: int
    num_young: int
    """Unlisted blobs that stay because they are young."""

    @property
    def to_delete_bytes(self) -> int:
        return sum(info.size_bytes for info in self.to_delete)


def plan_prune(store: Store, *, keep_last: int, min_age_s: float) -> PrunePlan:
    """Reads everything that a prune depends on; writes nothing.

    Raises ConfigError for a `keep_last` below 1 or a `min_age_s` below `MIN_AGE_S`, DamagedError when a release file is
    missing or cannot be read, StoreUnavailable when a listing fails or the store's clock contradicts its objects: then
    nothing may be deleted.
    """
    if keep_last < 1:
        raise ConfigError(f"retention.keep_last: expected at least 1, got {keep_last}")
    check_min_age(min_age_s)
    now = store.now()
    # Listed before the releases are read: a blob that a new release brings meanwhile is not among these.
    blobs = [info for info in store.list(BLOBS_PREFIX) if is_blob_key(info.key)]
    releases = read_all_releases(store)
    times = {number: release_time(store, number) for number in releases}
    check_clock(store, now, [*(info.modified for info in blobs), *times.values()])
    ages = {number: now - modified for number, modified in times.items()}
    protected = protect(ages, pinned_among(store, releases), keep_last=keep_last, min_age_s=min_age_s)
    live = {blob_key(sha256) for number in protected for sha256 in releases[number].blobs()}
    unlisted = [info for info in blobs if info.key not in live]
    to_delete = [info for info in unlisted if now - info.modified > min_age_s]
    to_abort = [upload for upload in store.list_uploads() if is_ours(upload) and now - upload.started > min_age_s]
    return PrunePlan(
        protected=protected,
        to_delete=to_delete,
        to_abort=to_abort,
        newest=max(releases, default=0),
        min_age_s=min_age_s,
        num_kept=len(blobs) - len(unlisted),
        num_young=len(unlisted) - len(to_delete),
    )


def check_min_age(min_age_s: float) -> None:
    """Raises ConfigError for an age at which a publish may still trust a blob that no release lists yet."""
    if min_age_s < MIN_AGE_S:
        raise ConfigError(
            f"retention.min_age: expected at least {MIN_AGE_S:g} s, since a publish trusts blobs as young as that, got "
            f"{min_age_s:g} s"
        )


def is_ours(upload: PendingUpload) -> bool:
    """Whether nightcrate started this upload; other programs may write to the same bucket."""
    return is_blob_key(upload.key) or upload.key.startswith(OWN_PREFIXES)


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
    """When the store received the release, in unix seconds by its clock."""
    info = store.head(release_key(number))
    if info is None:
        raise DamagedError(f"{store.url}: release {number} disappeared while it was read; nothing is deleted")
    return info.modified


def check_clock(store: Store, now: float, times: Iterable[float]) -> None:
    """Raises StoreUnavailable when the store's clock contradicts its objects or this machine's clock."""
    difference_s = abs(now - clock.wall_s())
    if difference_s > CLOCK_TOLERANCE_S:
        raise StoreUnavailable(
            f"{store.url}: expected its clock and this machine's to agree, got {difference_s:.0f} s between them: one "
            "is wrong, set it; nothing is deleted"
        )
    newest = max(times, default=now)
    if newest > now + CLOCK_TOLERANCE_S:
        raise StoreUnavailable(
            f"{store.url}: expected a clock ahead of the objects it stamped, got one {newest - now:.0f} s behind the "
            "newest of them; nothing is deleted"
        )


def apply_prune(store: Store, plan: PrunePlan, check: Callable[[], None]) -> int:
    """Deletes what the plan names and is still as it was planned; returns how many blobs were deleted.

    The caller holds the lease, taken with `deletes=True` before the plan was made. `check` is called right before each
    deletion and raises when this process must not continue (its lease is lost). Releases and pins added since the plan
    are looked up every few deletions, and their blobs stay.
    """
    check_min_age(plan.min_age_s)
    deleted, live = 0, set[str]()
    for position, info in enumerate(plan.to_delete):
        if position % RECHECK_EVERY == 0:
            live = newly_protected(store, plan)
        found = store.head(info.key)
        if info.key in live or found is None or found.modified > info.modified:
            continue  # needed by a release since the plan, or sent again: a publish wants it
        check()
        store.delete(info.key)
        deleted += 1
    for upload in plan.to_abort:
        check()
        store.abort_upload(upload)
    return deleted


def newly_protected(store: Store, plan: PrunePlan) -> set[str]:
    """The keys of the blobs that releases and pins added since the plan protect."""
    pinned = pinned_numbers(store)
    numbers = [number for number in release_numbers(store) if number > plan.newest or number in pinned]
    new = [number for number in numbers if number not in plan.protected]
    return {blob_key(sha256) for number in new for sha256 in read_release(store, number).blobs()}


def pin(store: Store, number: int) -> None:
    """Protects a release from `prune`; waits for a prune that began before and might not know of the pin.

    Raises ConfigError where there is no such release, DamagedError where blobs of it are missing, before the pin or
    after: then it is not pinned.
    """
    release, key = read_release(store, number), _pin_key(number)
    _require_blobs(store, release)
    was_pinned = store.head(key) is not None
    store.put(key, b"{}")
    wait_for_prune(store)
    try:
        _require_blobs(store, release)
    except DamagedError:
        if not was_pinned:
            store.delete(key)
        raise


def _require_blobs(store: Store, release: Release) -> None:
    if missing := missing_blobs(store, release):
        raise DamagedError(
            f"{store.url}: expected all blobs of release {release.number}, {len(missing)} are missing or altered, such "
            f"as {missing[0]}: a prune may have deleted them; the release cannot be pinned"
        )


def unpin(store: Store, number: int) -> None:
    """Removes the pin. Raises ConfigError when the release is not pinned."""
    if store.head(_pin_key(number)) is None:
        raise ConfigError(f"{store.url}: release {number} is not pinned; pinned: {pinned_numbers(store) or 'none'}")
    store.delete(_pin_key(number))


def pinned_among(store: Store, numbers: Iterable[int]) -> list[int]:
    """Those of `numbers` that are pinned. Looks up each by name: a listing that lacks a pin would cost its release."""
    return [number for number in numbers if store.head(_pin_key(number)) is not None]


def pinned_numbers(store: Store) -> list[int]:
    """The pinned releases, ascending."""
    matches = (_PIN_KEY.fullmatch(info.key) for info in store.list(PINS_PREFIX))
    return sorted(int(match[1]) for match in matches if match)


def _pin_key(number: int) -> str:
    return f"{PINS_PREFIX}{number:020d}.json"
