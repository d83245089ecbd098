"""What nightcrate needs of object storage: a handful of operations that both S3 and a folder can provide."""

from __future__ import annotations

import io
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from indexing.errors import DataError, ObjectNotFound, StoreUnavailable

MAX_KEY_BYTES = 1024
"""S3's own limit on a key."""

READ_BUFFER_BYTES = 4 << 20
"""Minimum size of a request of `Store.open`: small enough to waste little, large enough to hide latency."""


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """Where S3 is; credentials are never part of it, they come from the usual AWS environment, files and roles."""

    endpoint: str | None = None
    """http(s)://host[:port] of an S3 server that is not AWS; by default AWS_ENDPOINT_URL_S3, or AWS itself."""
    region: str | None = None
    """By default AWS_REGION, AWS_DEFAULT_REGION or the profile's."""


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One stored object. `modified` is in unix seconds by the store's clock, not this machine's."""

    key: str
    size_bytes: int
    modified: float
    etag: str | None
    sha256: str | None
    """Hex SHA-256 of the whole object where the store has checked one (S3 `head`, single PUT); else None."""


@dataclass(frozen=True, kw_only=True)
class PendingUpload:
    """A write that has begun and is not visible: a multipart upload, or a temporary file of a folder."""

    key: str
    upload_id: str
    started: float
    """Unix seconds by the store's clock."""


class Store(ABC):
    """Objects named by relative keys such as `releases/1.json`. Instances can be pickled and shared by threads.

    Every write is atomic: a reader sees the old object, the new one or none, never a part. Every method raises
    StoreUnavailable when the storage is unavailable, refuses access or is full, and DataError for a key that is
    empty, absolute or points outside the store.
    """

    url: str

    @abstractmethod
    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        """The whole object. Raises ObjectNotFound; DamagedError, before reading it, if larger than `max_bytes`."""

    @abstractmethod
    def get_range(self, key: str, start: int, num_bytes: int, etag: str | None = None) -> bytes:
        """Bytes [start, start + num_bytes), cut off at the object's end; b"" from there on. Raises ObjectNotFound.

        With `etag`, raises ReplacedError where the object has another.
        """

    def open(self, key: str, listed: ObjectInfo | None = None) -> BinaryIO:
        """A seekable file, all of whose bytes are of one version of the object. Raises ObjectNotFound.

        The version is that of `listed`, which may have been listed on another machine, by default the one that is there
        now. Raises ReplacedError, here or when it is read, once there is another. A folder knows its versions by size,
        time of change and inode, and looks here alone.
        """
        info = listed or self.head(key)
        if info is None:
            raise ObjectNotFound(f"expected {self.describe(key)} to exist, found nothing there")
        return cast(BinaryIO, io.BufferedReader(_RangeFile(self, info), READ_BUFFER_BYTES))

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Stream the object to `path`, which appears only when it is complete. Raises ObjectNotFound."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store `data`, replacing any existing object."""

    @abstractmethod
    def upload(self, key: str, path: Path, sha256: str) -> bool:
        """Stream the file at `path`, whose hex SHA-256 the caller knows, replacing any existing object.

        True when the store itself has checked SHA-256 over every byte; False when the caller must read back to
        know. Raises DamagedError, storing nothing, when the file or what arrived has another digest.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Store `data` only if the key is absent; of any number of concurrent callers, one gets True.

        An answer that was lost or is in doubt is settled by reading back: the caller's own bytes mean True, so
        `data` should name its writer wherever two writers could otherwise send the same bytes. Raises
        StoreUnavailable when the outcome cannot be determined.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """What is stored under `key`, None when absent."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with the plain string `prefix`, sorted by key (code points = UTF-8 bytes).

        The listing is complete before the first object is yielded: a failure raises and yields nothing.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the object; one that is missing is fine."""

    @abstractmethod
    def now(self) -> float:
        """The store's clock in unix seconds, the one that `ObjectInfo.modified` is read from."""

    def list_uploads(self, prefix: str = "") -> tuple[PendingUpload, ...]:
        """Writes that have begun and not finished, oldest first; none where a store has no such thing."""
        return ()

    def abort_upload(self, upload: PendingUpload) -> None:
        """Discard a pending upload; one that is finished or already discarded is fine."""
        raise NotImplementedError(f"{type(self).__name__} lists no pending uploads")

    def address(self) -> str:
        """What tells two stores of the same URL apart: the server where it is kept."""
        return self.url

    def describe(self, key: str) -> str:
        """The object's full address, for messages."""
        return f"{self.url}/{key}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def check_key(key: str) -> str:
    """Return `key` if it names an object inside the store; raises DataError otherwise."""
    if not key or not _is_inside(key) or key.endswith("/") or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise DataError(f"expected a relative key such as 'a/b.json', got {key[:200]!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys can start with it ('' and a part of a name can); raises DataError otherwise."""
    if prefix and not _is_inside(prefix.removesuffix("/")):
        raise DataError(f"expected the start of a relative key such as 'a/b', got {prefix[:200]!r}")
    return prefix


def _is_inside(key: str) -> bool:
    """No empty, `.` or `..` part, nothing unprintable, and not the local store's folder of temporary files."""
    parts = key.split("/")
    return key.isprintable() and "\\" not in key and not {"", ".", ".."}.intersection(parts) and parts[0] != ".tmp"


def no_conditional_put(url: str, found: str) -> StoreUnavailable:
    """The error of a store that cannot create an object only if it is absent."""
    return StoreUnavailable(
        f"conditional PUT (If-None-Match: *) is not honoured by {url}: publishing needs it, use another store; {found}"
    )


@contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """A file to fill that replaces `path` at the end, or is deleted if the block raises.

    Raises StoreUnavailable where the file cannot be written: a full disk, no permission.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        try:
            with open(partial, "xb") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"cannot write {path}: {error.strerror or error}") from error


class _RangeFile(io.RawIOBase):
    """Raw reads over `get_range`; `io.BufferedReader` above it makes the requests large."""

    def __init__(self, store: Store, info: ObjectInfo) -> None:
        self._store, self._info, self._position = store, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"expected a position from 0, got {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        num_bytes = min(len(buffer), self._info.size_bytes - self._position)
        if num_bytes <= 0:
            return 0
        data = self._store.get_range(self._info.key, self._position, num_bytes, self._info.etag)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
