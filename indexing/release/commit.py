"""Publishing and reading releases: blobs first, each verified, then one release file that is created only if absent."""

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from indexing.errors import (
    ConfigError,
    DamagedError,
    ObjectNotFound,
    PublishConflict,
    StoreUnavailable,
    UntrustedError,
)
from indexing.release.lease import wait_for_prune
from indexing.release.manifest import (
    MAX_RELEASE_BYTES,
    RELEASES_PREFIX,
    Release,
    parse_release,
    release_key,
    release_number,
    release_to_bytes,
)
from indexing.release.seal import seal
from indexing.release.signing import check_signed_bytes
from indexing.store import ObjectInfo, Store
from indexing.store.blobs import Blob, Fetch, blob_key, hash_object

UPLOAD_THREADS = 8
NUM_RESENDS = 3
MAX_LOOK_BACK = 16
"""Releases that are tried, newest first, until one is valid."""
YOUNG_S = 3600.0
"""The age up to which a publish trusts a blob that no release lists; no prune deletes one that young."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UploadCounts:
    """What a publish sent, and what the store held already."""

    uploaded: int
    uploaded_bytes: int
    reused: int
    reused_bytes: int


def release_numbers(store: Store) -> list[int]:
    """The numbers of the releases, ascending; the last is the current one. Other names under releases/ are ignored."""
    numbers = (release_number(info.key) for info in store.list(RELEASES_PREFIX))
    return sorted(number for number in numbers if number is not None)


def read_release(store: Store, number: int | None = None, keys: Sequence[Ed25519PublicKey] | None = None) -> Release:
    """The release of that number, the current one by default; with `keys`, only if one of these has signed it.

    Raises ConfigError where there is none, DamagedError where its file is not a valid release, UntrustedError where it
    is signed by none of `keys`.
    """
    number = require_releases(store)[-1] if number is None else number
    key = release_key(number)
    try:
        data = store.get(key, max_bytes=MAX_RELEASE_BYTES)
        # First, since it is cheap and decides whether to read on.
        signature = check_signed_bytes(data, keys) if keys is not None else None
        release = parse_release(data)
        if signature and release.signature != signature:
            raise DamagedError("its signature is not where a publisher writes it")
    except ObjectNotFound as error:
        raise ConfigError(f"no release {number} in {store.url}: {_describe_range(release_numbers(store))}") from error
    except DamagedError as error:
        raise type(error)(f"{store.url}: {key}: {error}") from error
    if release.number != number:
        raise DamagedError(f"{store.url}: {key}: number: expected {number}, got {release.number}")
    return release


def newest_valid_release(store: Store, keys: Sequence[Ed25519PublicKey] | None = None, after: int = 0) -> Release:
    """The newest release after number `after` with a valid file, and signed by one of `keys` if given.

    Tries the last `MAX_LOOK_BACK`. Newer ones that are damaged are logged as warnings, and those that no trusted key
    has signed as errors: going back to an older release must not be silent. Raises ConfigError where there is no
    release, and what `read_release` raises for the newest where none is valid.
    """
    passed: list[DamagedError] = []
    numbers = [number for number in require_releases(store) if number > after]
    for number in reversed(numbers[-MAX_LOOK_BACK:]):
        try:
            release = read_release(store, number, keys)
        except DamagedError as error:
            passed.append(error)
            continue
        for reason in passed:
            level = logging.ERROR if isinstance(reason, UntrustedError) else logging.WARNING
            logger.log(level, "%s; using release %d, the newest valid one before it", reason, number)
        return release
    raise passed[0]


def require_releases(store: Store) -> list[int]:
    """`release_numbers`, at least one. Raises ConfigError where there is none."""
    numbers = release_numbers(store)
    if not numbers:
        raise ConfigError(f"no release in {store.url}: run nightly first")
    return numbers


def upload_blobs(
    store: Store,
    blobs: Iterable[Blob],
    fetch: Fetch,
    on_blob: Callable[[Blob], None] | None = None,
    *,
    parent: Release | None = None,
    read_back: bool = False,
) -> UploadCounts:
    """Makes sure that the store has every blob; `fetch` returns the file of one that has to be sent.

    Two kinds of blobs are not sent again: those that `parent` lists, which no prune deletes, and those stored within
    the last hour, for example by a killed run. Of the first, size and checksum are compared and nothing is read. Any
    other blob in the store may be about to be pruned, and sending it again keeps it. `read_back` reads every byte back
    even where the store keeps a checksum. `on_blob` is called from
    this thread once a blob is verified. Raises StoreUnavailable where the store has other bytes than were sent, and
    whatever the store raises; then nothing may be committed.
    """
    kept = parent.blobs().keys() if parent else set()
    young_from = store.now() - YOUNG_S

    def ensure(blob: Blob) -> tuple[Blob, bool]:
        if blob.sha256 in kept and not read_back and find_blob(store, blob):
            return blob, False
        return blob, _ensure_blob(store, blob, fetch, 0.0 if blob.sha256 in kept else young_from, read_back)

    counts = {True: [0, 0], False: [0, 0]}
    with ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload") as pool:
        for blob, was_sent in pool.map(ensure, blobs):
            counts[was_sent][0] += 1
            counts[was_sent][1] += blob.size_bytes
            if on_blob is not None:
                on_blob(blob)
    return UploadCounts(
        uploaded=counts[True][0],
        uploaded_bytes=counts[True][1],
        reused=counts[False][0],
        reused_bytes=counts[False][1],
    )


def publish_release(store: Store, release: Release, upload: Callable[[], None], check: Callable[[], None]) -> Release:
    """Sends the blobs with `upload`, commits the release, and makes sure that no prune deleted a blob meanwhile.

    Returns the release as it is published.

    `upload` is called again when blobs are missing, and sends those. `check` raises when this process must not
    continue (its lease is lost). A process may be stopped after `check`, and lose its lease then. So the blobs are
    checked after the commit too, once every prune that might not know of the release has ended.

    Raises PublishConflict where another release was published in between, and what `upload` and `check` raise.
    """
    upload()
    resend_missing(store, release, upload)
    check()
    release = commit_release(store, release)
    wait_for_prune(store)
    resend_missing(store, release, upload)
    return release


def resend_missing(store: Store, release: Release, upload: Callable[[], None]) -> None:
    """Sends again what was deleted or altered since it was checked. Raises StoreUnavailable if that keeps happening."""
    for _ in range(NUM_RESENDS):
        missing = missing_blobs(store, release)
        if not missing:
            return
        logger.warning("publish: %d blobs were deleted since they were checked; sending them again", len(missing))
        upload()
    if missing := missing_blobs(store, release):
        raise StoreUnavailable(
            f"{store.url}: {len(missing)} blobs of release {release.number} are deleted or altered each time they are "
            "sent: find what does that and stop it, then run again"
        )


def commit_release(store: Store, release: Release) -> Release:
    """Publishes the release: its file is the commit point, and every blob must be in the store by now.

    Returns it as it is published: with its own digest, which a signed one already has. The releases before it may be
    damaged. Raises PublishConflict where another release was published in between; nothing is overwritten.
    """
    if release.signature is None:
        release = seal(release)
    data = release_to_bytes(release)
    current = next(reversed(release_numbers(store)), None)
    if current != release.parent:
        raise _conflict(store, release, current)
    key = release_key(release.number)
    if not store.create(key, data):
        raise _conflict(store, release, release.number)
    if store.get(key, max_bytes=MAX_RELEASE_BYTES) != data:
        raise StoreUnavailable(f"{store.url}: expected the release just written in {key}, got other bytes")
    return release


def missing_blobs(store: Store, release: Release) -> list[str]:
    """The digests of the release's blobs that are not in the store: none, unless something deletes or alters them.

    Compares sizes, and SHA-256 where the store reports it; reads no blob.
    """
    return [sha256 for sha256, blob in release.blobs().items() if find_blob(store, blob) is None]


def _ensure_blob(store: Store, blob: Blob, fetch: Fetch, reuse_from: float, read_back: bool) -> bool:
    """Whether the blob was sent; one that was stored before `reuse_from` is sent again."""
    found, key = find_blob(store, blob), blob_key(blob.sha256)
    if found and found.modified >= reuse_from and _holds(store, blob, read_back):
        return False
    is_checked = store.upload(key, fetch(blob), sha256=blob.sha256)
    if (read_back or not is_checked) and not _holds(store, blob, read_back):
        raise StoreUnavailable(f"{store.url}: expected {key} as it was sent, the store has other bytes")
    return True


def _holds(store: Store, blob: Blob, read_back: bool) -> bool:
    """Whether the store has the blob, by its own checksum where it keeps one, else by reading it back."""
    found = find_blob(store, blob)
    if found is None:
        return False
    digest = None if read_back else found.sha256
    return (digest or hash_object(store, found.key)) == blob.sha256


def find_blob(store: Store, blob: Blob) -> ObjectInfo | None:
    """The store's entry for the blob, if it has the right size and no other checksum."""
    info = store.head(blob_key(blob.sha256))
    if info is None or info.size_bytes != blob.size_bytes or info.sha256 not in (None, blob.sha256):
        return None
    return info


def _conflict(store: Store, release: Release, current: int | None) -> PublishConflict:
    came = "there is none"
    if current is not None:
        try:
            other = read_release(store, current)
            came = f"release {current} by {other.writer_id} at {other.created_at} is"
        except DamagedError as error:
            came = f"release {current} is, and its file is damaged ({error})"
    expected = f"release {release.parent}" if release.parent else "no release"
    return PublishConflict(f"{store.url}: expected {expected} to be current, but {came}: start again from it")


def _describe_range(numbers: list[int]) -> str:
    return f"it has {numbers[0]} to {numbers[-1]}" if numbers else "it has none, run nightly first"
