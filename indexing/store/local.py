"""A store in a folder: whole files appear by rename or link, from a folder of temporary files next to them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from indexing.errors import ConfigError, DamagedError, DataError, ObjectNotFound, ReplacedError, StoreUnavailable
from indexing.store.base import ObjectInfo, PendingUpload, Store, check_key, check_prefix, replacing_file

COPY_BYTES = 1 << 20
TEMP_FOLDER = ".tmp"
_TEMP_NAME = re.compile(r".+\.[0-9a-f]{32}")
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What opening raises where there is no such object, a folder of objects, or an object in place of its folder."""


class LocalStore(Store):
    """Objects as files under `root`, which the first write creates. Needs a file system with hard links.

    `root` may be a symbolic link. Below it, a link to a folder is not part of the store: writing and deleting through
    one, and listing a folder that has one, raise DataError. A link to a file reads as that file; deleting it deletes
    the link.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._host = socket.gethostname()
        self.url = f"file://{self._root}"
        if self._root.exists() and not self._root.is_dir():
            raise ConfigError(f"expected a folder for the store {self.url}, got a file")

    def get(self, key: str, max_bytes: int | None = None) -> bytes:
        with self._reading(key) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if max_bytes is not None and size_bytes > max_bytes:
                raise DamagedError(f"expected at most {max_bytes} bytes in {self.describe(key)}, got {size_bytes}")
            return file.read()

    def get_range(self, key: str, start: int, num_bytes: int, etag: str | None = None) -> bytes:
        with self._reading(key) as file:
            if etag is not None and _info(key, os.fstat(file.fileno())).etag != etag:
                raise ReplacedError(f"{self.describe(key)} was replaced while it was read: run again")
            file.seek(start)
            return file.read(num_bytes)

    def open(self, key: str, listed: ObjectInfo | None = None) -> BinaryIO:
        with self._errors(key, ABSENT):
            file = self._path(key).open("rb")
        if listed and not self._is_same(_info(key, os.fstat(file.fileno())), listed):
            file.close()
            raise ReplacedError(f"{self.describe(key)} was replaced since it was listed: run again")
        return file

    def _is_same(self, found: ObjectInfo, listed: ObjectInfo) -> bool:
        """If another machine listed it, its inode may have another number there (FUSE), but its time is the same."""
        if socket.gethostname() == self._host:
            return found.etag == listed.etag
        return (found.size_bytes, found.modified) == (listed.size_bytes, listed.modified)

    def download(self, key: str, path: Path) -> None:
        with self.open(key) as source, replacing_file(path) as file:
            shutil.copyfileobj(source, file, COPY_BYTES)

    def put(self, key: str, data: bytes) -> None:
        with self._writing(key) as (temp, file):
            file.write(data)
            _sync(file)
            os.replace(temp, self._path(key))

    def upload(self, key: str, path: Path, sha256: str) -> bool:
        digest = hashlib.sha256()
        with open(path, "rb") as source, self._writing(key) as (temp, file):
            while chunk := source.read(COPY_BYTES):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != sha256:
                raise DamagedError(f"expected sha256 {sha256} of {path}, got {digest.hexdigest()}")
            _sync(file)
            os.replace(temp, self._path(key))
        return False

    def create(self, key: str, data: bytes) -> bool:
        with self._writing(key) as (temp, file):
            file.write(data)
            _sync(file)
            try:
                os.link(temp, self._path(key))
            except FileExistsError:
                with suppress(ObjectNotFound):  # deleted since
                    return self.get(key) == data
                return False
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise StoreUnavailable(
                        f"expected hard links on the file system of {self.url}: publishing needs them to create a "
                        f"file only if absent; got {error.strerror}; use another file system"
                    ) from error
                raise
        return True

    def head(self, key: str) -> ObjectInfo | None:
        with suppress(ObjectNotFound), self._errors(key, ABSENT):
            path = self._path(key)
            return _info(key, path.stat()) if path.is_file() else None
        return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = check_prefix(prefix).rpartition("/")[0]
        with self._errors(prefix):
            infos = [info for info in self._walk(folder) if info.key.startswith(prefix)]
        return iter(sorted(infos, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        with suppress(ObjectNotFound), self._errors(key, ABSENT):
            self._refuse_links(key.rpartition("/")[0])
            self._path(key).unlink()

    def now(self) -> float:
        if not self._root.exists():
            return time.time()
        with self._errors(TEMP_FOLDER):
            temp = self._temp_path("preflight/now")
            temp.touch(exist_ok=False)
            try:
                return temp.stat().st_mtime
            finally:
                temp.unlink()

    def list_uploads(self, prefix: str = "") -> tuple[PendingUpload, ...]:
        """Temporary files: those of running writes, and those that a killed process left behind."""
        uploads = []
        check_prefix(prefix)
        with self._errors(TEMP_FOLDER):
            for entry in self._scan(TEMP_FOLDER):
                key = unquote(entry.name.rpartition(".")[0])
                if key.startswith(prefix) and _TEMP_NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # a write that has just ended
                        started = entry.stat(follow_symlinks=False).st_mtime
                        uploads.append(PendingUpload(key=key, upload_id=entry.name, started=started))
        return tuple(sorted(uploads, key=lambda upload: upload.started))

    def abort_upload(self, upload: PendingUpload) -> None:
        with self._errors(upload.key):
            self._refuse_links(TEMP_FOLDER)
            (self._root / TEMP_FOLDER / Path(upload.upload_id).name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _temp_path(self, key: str) -> Path:
        """A new name in the folder of temporary files that contains the key (its first 150 characters)."""
        self._refuse_links(TEMP_FOLDER)
        folder = self._root / TEMP_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{quote(key, safe='')[:150]}.{uuid.uuid4().hex}"

    @contextmanager
    def _reading(self, key: str) -> Iterator[BinaryIO]:
        with self._errors(key, ABSENT), open(self._path(key), "rb") as file:
            yield file

    @contextmanager
    def _writing(self, key: str) -> Iterator[tuple[Path, BinaryIO]]:
        """A temporary file to fill and move into place; it is deleted afterwards in any case."""
        path = self._path(key)
        with self._errors(key):
            self._make_folder(key)
            temp = self._temp_path(key)
            try:
                with open(temp, "xb") as file:
                    yield temp, file
                _sync_folder(path.parent)
            finally:
                temp.unlink(missing_ok=True)

    @contextmanager
    def _errors(self, key: str, absent: tuple[type[OSError], ...] = ()) -> Iterator[None]:
        try:
            yield
        except absent as error:
            raise ObjectNotFound(f"expected {self.describe(key)} to exist, found nothing there") from error
        except OSError as error:
            raise StoreUnavailable(f"cannot use {self.describe(key)}: {error.strerror or error}") from error

    def _make_folder(self, key: str) -> None:
        """Make the folder for `key`. What S3 can and a folder cannot: hold both `a` and `a/b`."""
        path = self._path(key)
        self._refuse_links(key.rpartition("/")[0])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(f"expected no file where {self.describe(key)} needs a folder, got one") from error
        if path.is_dir():
            raise DataError(f"expected no folder at {self.describe(key)}, got one with other keys in it")

    def _refuse_links(self, folder: str) -> None:
        """Raises DataError when `folder`, or one on the way to it from the root, is a symbolic link."""
        path = self._root
        for name in filter(None, folder.split("/")):
            path = path / name
            if path.is_symlink():
                raise DataError(
                    f"expected a folder at file://{path}, got a symbolic link: what it leads to is not listed, written "
                    "or deleted; put the folder itself there, or remove the link"
                )

    def _walk(self, folder: str) -> Iterator[ObjectInfo]:
        for entry in self._scan(folder):
            key = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir():
                if key != TEMP_FOLDER:
                    yield from self._walk(key)
            else:
                with suppress(FileNotFoundError):  # deleted since the folder was read
                    yield _info(key, entry.stat())

    def _scan(self, folder: str) -> tuple[os.DirEntry[str], ...]:
        """Entries of a folder, none if it does not exist; anything else that fails raises: no partial listing."""
        self._refuse_links(folder)
        try:
            with os.scandir(self._root / folder) as entries:
                return tuple(entries)
        except (FileNotFoundError, NotADirectoryError):
            return ()


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    etag = f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
    return ObjectInfo(key=key, size_bytes=status.st_size, modified=status.st_mtime, etag=etag, sha256=None)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename or link in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
