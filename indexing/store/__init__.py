"""Object storage: `open_store("s3://bucket/prefix")` or a folder, behind one small interface."""

from __future__ import annotations

import re
from pathlib import Path

from indexing.errors import ConfigError
from indexing.store.base import ObjectInfo, PendingUpload, S3Settings, Store
from indexing.store.preflight import preflight

__all__ = ["ObjectInfo", "PendingUpload", "S3Settings", "Store", "open_store", "preflight"]

EXPECTED = "expected s3://bucket/prefix, file:///folder, file://./folder or a path"


def open_store(url: str, s3: S3Settings | None = None) -> Store:
    """The store at `url`; nothing is contacted or made yet. Raises ConfigError for a URL of no known kind."""
    if not url.strip():
        raise ConfigError(f"{EXPECTED}, got an empty store URL")
    if url.startswith("s3://"):
        from indexing.store.s3 import S3Store  # boto3 loads only where S3 is used

        return S3Store(url, s3 or S3Settings())
    return _open_folder(url)


def _open_folder(url: str) -> Store:
    from indexing.store.local import LocalStore

    path = url.removeprefix("file://")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path):
        raise ConfigError(f"{EXPECTED}, got the scheme {path.partition(':')[0]!r}")
    if url.startswith("file://") and not path.startswith(("/", "./", "../")):
        raise ConfigError(f"{EXPECTED}, got {url!r} (a relative folder is file://./{path})")
    return LocalStore(Path(path))
