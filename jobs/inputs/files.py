"""The user's files: found, their Parquet footers read, their errors in one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.errors import ConfigError, DataError, ObjectNotFound, ReplacedError, first_line
from indexing.store import ObjectInfo, S3Settings, Store, open_store
from indexing.store.blobs import hash_stream
from indexing.store.local import LocalStore

Kinds = Mapping[str, tuple[str, ...]]
"""Kind of file → the suffixes of its files."""
PARQUET: Kinds = {"Parquet": (".parquet",)}
ROWS: Kinds = {**PARQUET, "CSV": (".csv", ".csv.gz"), "JSON lines": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")}


def list_files(
    path: str, s3: S3Settings | None, setting: str, kinds: Kinds = PARQUET
) -> tuple[Store, list[ObjectInfo]]:
    """The store that holds `path`, and its files of one of the kinds, sorted by key.

    Raises ConfigError where there are none, or some of two kinds, which may hold the same rows.
    """
    if kind_of(path, kinds):
        folder, _, name = path.rpartition("/")
        store = open_store(folder or ".", s3)
        if info := store.head(name):
            return store, [info]
    store = open_store(path, s3)  # a folder, whatever its name: Spark calls them a.parquet
    files = [info for info in store.list("") if kind_of(info.key, kinds)]
    *others, last = kinds
    wanted = f"{', '.join(others)} or {last}" if others else last
    if not files:
        raise ConfigError(f"{setting}: expected a {wanted} file or a folder of them, found none at {path}")
    examples = {kind_of(info.key, kinds): info.key for info in files}
    if len(examples) > 1:
        found = " and ".join(f"{kind} ({key})" for kind, key in sorted(examples.items()))
        raise ConfigError(f"{setting}: expected files of one kind at {path}, got {found}; name the file that is meant")
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


def kind_of(name: str, kinds: Kinds = ROWS) -> str:
    """The kind of a file by its name; '' where it is none of them."""
    return next((kind for kind, ends in kinds.items() if name.lower().endswith(ends)), "")


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
