"""The user's Parquet files: found, their footers read, their errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.errors import ConfigError, DataError, ObjectNotFound, ReplacedError, first_line
from indexing.store import ObjectInfo, S3Settings, Store, open_store
from indexing.store.blobs import hash_stream
from indexing.store.local import LocalStore


def list_parquet(path: str, s3: S3Settings | None, setting: str) -> tuple[Store, list[ObjectInfo]]:
    """The store that holds `path`, and its Parquet files, sorted by key."""
    if path.endswith(".parquet"):
        folder, _, name = path.rpartition("/")
        store = open_store(folder or ".", s3)
        if info := store.head(name):
            return store, [info]
    store = open_store(path, s3)  # a folder, whatever its name: Spark calls them a.parquet
    files = [info for info in store.list("") if info.key.endswith(".parquet")]
    if not files:
        raise ConfigError(f"{setting}: expected a Parquet file or a folder of them, found none at {path}")
    return store, files


@contextmanager
def open_listed(store: Store, info: ObjectInfo) -> Iterator[BinaryIO]:
    """The object as it was listed, to read while the block runs.

    Raises DataError where it was replaced or deleted since, so that no run mixes two versions.
    """
    try:
        with store.open(info.key, info) as file:
            yield file
        store.open(info.key, info).close()  # a file may have been written to while it was read
    except (ReplacedError, ObjectNotFound) as error:
        raise DataError(
            f"{store.describe(info.key)}: expected the file that this run has listed, it was replaced or deleted "
            "since: run again once it is complete"
        ) from error


def content_digest(store: Store, info: ObjectInfo, file: BinaryIO) -> str:
    """SHA-256 of a local file, which is open, or the ETag: both change with the content."""
    if isinstance(store, LocalStore):
        file.seek(0)
        return hash_stream(file)
    if info.etag is None:
        raise DataError(f"{store.describe(info.key)}: expected an ETag from the store, got none")
    return info.etag


def read_footer(file: Any, source: str) -> tuple[pq.FileMetaData, pa.Schema]:
    with parquet_errors(source):
        parquet = pq.ParquetFile(file)
        return parquet.metadata, parquet.schema_arrow


@contextmanager
def parquet_errors(source: str) -> Iterator[None]:
    """What Arrow raises for invalid Parquet, which includes OSError, as DataError naming `source`."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source}: expected a Parquet file; {first_line(error)}") from error
