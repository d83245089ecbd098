"""Blobs: immutable objects of a store, named by the SHA-256 of their content."""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from indexing.store import Store

BLOBS_PREFIX = "blobs/sha256/"
SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB_KEY = re.compile(r"blobs/sha256/([0-9a-f]{2})/\1[0-9a-f]{62}")


def hash_file(path: Path) -> str:
    """The sha256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Blob:
    """An immutable object of the store, named by its content."""

    sha256: str
    """64 lower-case hex digits."""
    size_bytes: int


Fetch = Callable[[Blob], Path]
"""From a blob to a local file whose digest has been checked."""


def blob_key(sha256: str) -> str:
    """The key of a blob: from the digest alone, so no release file can point anywhere else."""
    return f"{BLOBS_PREFIX}{sha256[:2]}/{sha256}"


def is_blob_key(key: str) -> bool:
    """Whether `blob_key` gives this key for some digest."""
    return _BLOB_KEY.fullmatch(key) is not None


READ_BYTES = 8 * 1024 * 1024


def hash_object(store: Store, key: str) -> str:
    """The sha256 of an object, read once as a stream."""
    with store.open(key) as stream:
        return hash_stream(stream)


def hash_stream(stream: BinaryIO) -> str:
    """The sha256 of the rest of the stream."""
    digest = hashlib.sha256()
    while chunk := stream.read(READ_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def upload_folder(store: Store, prefix: str, folder: Path, names: Iterable[str]) -> None:
    """The files `names` of `folder`, relative POSIX paths, under `prefix`."""
    for name in names:
        store.upload(f"{prefix}/{name}", folder / name, sha256=hash_file(folder / name))


def blob_of(data: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def file_blob(path: Path) -> Blob:
    return Blob(sha256=hash_file(path), size_bytes=path.stat().st_size)
