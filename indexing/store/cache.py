"""Blobs on the local disk, named by their content, shared by every process that uses the same folder."""

import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from indexing.errors import DamagedError, ObjectNotFound, StoreUnavailable
from indexing.store import Store
from indexing.store.blobs import Blob, Fetch, blob_key, hash_file

logger = logging.getLogger(__name__)
_FileState = tuple[int, int, int]
GRACE_S = 600.0
MAX_TRIES = 5
T = TypeVar("T")


class BlobCache:
    """Local copies of blobs under `folder`. A copy is hashed when it arrives, and once by each process that uses it.

    Safe for threads and processes: files appear whole by rename, and equal names mean equal bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: dict[str, _FileState] = {}

    def fetch(self, store: Store, blob: Blob) -> Path:
        """The verified local copy of a blob, downloaded where there is none or a damaged one.

        Raises DamagedError where the store lacks the blob or holds other bytes under its name.
        """
        path = self.folder / blob.sha256[:2] / blob.sha256
        if not self._is_valid(path, blob):
            self._download(store, blob, path)
        with suppress(OSError):  # files of another owner can be read, but not touched
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return path

    def trim(self, max_bytes: int) -> None:
        """Removes the copies fetched longest ago until at most `max_bytes` remain, and files of killed downloads.

        Those of the last `GRACE_S` seconds stay whatever their size: some process may be about to load them.
        """
        now, total = time.time(), 0
        entries = sorted(self._entries(), key=lambda entry: entry[0], reverse=True)
        for fetched, size_bytes, path in entries:
            total += size_bytes
            if now - fetched > GRACE_S and (total > max_bytes or path.suffix == ".tmp"):
                path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(when it was last fetched, size in bytes, path) of every file in the cache."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(FileNotFoundError):  # another process trims too
                status = path.stat()
                yield status.st_atime, status.st_size, path

    def _is_valid(self, path: Path, blob: Blob) -> bool:
        try:
            state = _file_state(path)
            if self._verified.get(blob.sha256) == state:
                return True
            if path.stat().st_size != blob.size_bytes or hash_file(path) != blob.sha256:
                path.unlink(missing_ok=True)
                return False
        except (FileNotFoundError, NotADirectoryError):
            return False
        self._verified[blob.sha256] = state
        return True

    def _download(self, store: Store, blob: Blob, path: Path) -> None:
        make_folder(path.parent)
        temporary = path.with_name(f"{blob.sha256}.{uuid.uuid4().hex}.tmp")
        try:
            download_verified(store, blob, temporary)
            state = _file_state(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._verified[blob.sha256] = state


def make_folder(folder: Path) -> None:
    """In the cache. Raises StoreUnavailable where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            f"expected a writable cache folder, got {folder}: {error.strerror}; set NIGHTCRATE_CACHE to one"
        ) from error


def retry_vanished(load: Callable[[], T]) -> T:
    """What `load` returns, which fetches files and opens them; repeated where one was deleted in between.

    Another process may trim the same cache. Raises StoreUnavailable where that happens `MAX_TRIES` times.
    """
    for _ in range(MAX_TRIES):
        try:
            return load()
        except FileNotFoundError as error:
            vanished = error
    raise StoreUnavailable(
        f"expected cached files to last until they are opened, got {vanished.filename} deleted {MAX_TRIES} times; stop "
        "what deletes them, or use another cache folder"
    ) from vanished


def default_cache_folder() -> Path:
    """$NIGHTCRATE_CACHE, else nightcrate in $XDG_CACHE_HOME, else ~/.cache/nightcrate.

    Of a user without a home it is below /nonexistent: only who needs a cache is told to name one.
    """
    if folder := os.environ.get("NIGHTCRATE_CACHE"):
        return Path(folder)
    home = os.path.expanduser("~")
    cache = os.environ.get("XDG_CACHE_HOME") or Path("/nonexistent" if home == "~" else home, ".cache")
    return Path(cache, "nightcrate")


def download_verified(store: Store, blob: Blob, path: Path) -> None:
    """Downloads a blob to `path` and hashes what is on the disk. DamagedError unless size and digest are right."""
    key = blob_key(blob.sha256)
    info = store.head(key)
    if info is None:
        raise DamagedError(f"expected blob {store.describe(key)} of {blob.size_bytes} bytes, found nothing there")
    if info.size_bytes != blob.size_bytes:
        raise DamagedError(f"expected blob {store.describe(key)} of {blob.size_bytes} bytes, got {info.size_bytes}")
    logger.debug("downloading %s, %.1f MB", store.describe(key), blob.size_bytes / 1e6)
    try:
        store.download(key, path)
    except ObjectNotFound as error:
        raise DamagedError(f"expected blob {store.describe(key)}, it was deleted while being read") from error
    sha256 = hash_file(path)
    if sha256 != blob.sha256:
        raise DamagedError(f"expected blob {store.describe(key)} as its name says, got bytes of sha256 {sha256}")


def _file_state(path: Path) -> _FileState:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def downloads(store: Store) -> Iterator[Fetch]:
    """A function from a published blob to a verified copy, which is there while the block runs."""
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        yield partial(download_into, Path(folder), store)


def download_into(folder: Path, store: Store, blob: Blob) -> Path:
    """A verified copy of a published blob."""
    path = folder / blob.sha256
    if not path.exists():
        download_verified(store, blob, path)
    return path
