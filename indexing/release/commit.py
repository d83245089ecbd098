"""Publishing and reading releases: blobs first, each verified, then one release file that is created only if absent."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from indexing.errors import ConfigError, DamagedError, ObjectNotFound, PublishConflict, StoreUnavailable
from indexing.release.manifest import (
    MAX_RELEASE_BYTES,
    RELEASES_PREFIX,
    Blob,
    Release,
    blob_key,
    parse_release,
    release_key,
    release_number,
    release_to_bytes,
)
from indexing.store import Store

UPLOAD_THREADS = 8
READ_BYTES = 8 * 1024 * 1024


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


def read_release(store: Store, number: int | None = None) -> Release:
    """The release of that number, the current one by default.

    Raises ConfigError where there is none, DamagedError where its file is not a valid release.
    """
    if number is None:
        number = next(reversed(release_numbers(store)), None)
        if number is None:
            raise ConfigError(f"no release in {store.url}: run nightly first")
    key = release_key(number)
    try:
        release = parse_release(store.get(key, max_bytes=MAX_RELEASE_BYTES))
    except ObjectNotFound as error:
        raise ConfigError(f"no release {number} in {store.url}: {_describe_range(release_numbers(store))}") from error
    except DamagedError as error:
        raise DamagedError(f"{store.url}: {key}: {error}") from error
    if release.number != number:
        raise DamagedError(f"{store.url}: {key}: number: expected {number}, got {release.number}")
    return release


def upload_blobs(
    store: Store, files: Mapping[str, Path], on_blob: Callable[[Blob], None] | None = None
) -> UploadCounts:
    """Makes the store hold every file, by sha256, and checks that it does; what it holds already is not sent again.

    `on_blob` is called once a blob is known to be there, from this thread. Raises StoreUnavailable where the store
    keeps other bytes than were sent, and whatever the store raises; then nothing may be committed.
    """
    counts = {True: [0, 0], False: [0, 0]}
    with ThreadPoolExecutor(UPLOAD_THREADS, thread_name_prefix="upload") as pool:
        for blob, was_sent in pool.map(lambda item: _ensure_blob(store, *item), files.items()):
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


def commit_release(store: Store, release: Release) -> None:
    """Publishes the release: its file is the commit point, and every blob must be in the store by now.

    Raises PublishConflict where another release came in between; nothing is overwritten.
    """
    data = release_to_bytes(release)
    current = next(reversed(release_numbers(store)), None)
    if current != release.parent:
        raise _conflict(store, release, current)
    key = release_key(release.number)
    if not store.create(key, data):
        raise _conflict(store, release, release.number)
    if store.get(key, max_bytes=MAX_RELEASE_BYTES) != data:
        raise StoreUnavailable(f"{store.url}: expected the release just written in {key}, got other bytes")


def hash_object(store: Store, key: str) -> str:
    """The sha256 of an object, read once as a stream."""
    with store.open(key) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _ensure_blob(store: Store, sha256: str, path: Path) -> tuple[Blob, bool]:
    """The blob, and whether it had to be sent."""
    blob, key = Blob(sha256=sha256, size_bytes=path.stat().st_size), blob_key(sha256)
    if _holds(store, blob):
        return blob, False
    if not store.upload(key, path, sha256=sha256) and not _holds(store, blob):
        raise StoreUnavailable(f"{store.url}: expected {key} as it was sent, the store keeps other bytes")
    return blob, True


def _holds(store: Store, blob: Blob) -> bool:
    """Whether the store has the blob, by its own checksum where it keeps one, else by reading it back."""
    key = blob_key(blob.sha256)
    info = store.head(key)
    if info is None or info.size_bytes != blob.size_bytes:
        return False
    return (info.sha256 or hash_object(store, key)) == blob.sha256


def _conflict(store: Store, release: Release, current: int | None) -> PublishConflict:
    came = "there is none"
    if current is not None:
        other = read_release(store, current)
        came = f"release {current} by {other.writer_id} at {other.created_at} is"
    expected = f"release {release.parent}" if release.parent else "no release"
    return PublishConflict(f"{store.url}: expected {expected} to be current, but {came}: start again from it")


def _describe_range(numbers: list[int]) -> str:
    return f"it has {numbers[0]} to {numbers[-1]}" if numbers else "it has none, run nightly first"
