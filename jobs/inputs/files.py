"""The user's files: found, their Parquet footers read, their errors in one line."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.errors import ConfigError, DataError, ObjectNotFound, ReplacedError, first_line
from indexing.store import ObjectInfo, S3Settings, Store, open_store
from indexing.store.blobs import hash_stream
from indexing.store.local import LocalStore

Kinds = Mapping[str, tuple[str, ...]]
"""Kind of file → the suffixes of its files."""
PARQUET: Kinds = {"Parquet": (".parquet",)}
ROWS: Kinds = {
    **PARQUET,
    "CSV": (".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    "JSON lines": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
}


TABLE_FORMATS = {
    "Delta": re.compile(r"(^|/)_delta_log/"),
    "Iceberg": re.compile(r"(^|/)metadata/[^/]+\.metadata\.json$"),
    "Hudi": re.compile(r"(^|/)\.hoodie/"),
}
"""Tables whose log says which files count: the others are still there. → a file that only such a table has."""
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


def list_files(
    path: str, s3: S3Settings | None, setting: str, kinds: Kinds = PARQUET
) -> tuple[Store, list[ObjectInfo]]:
    """The store that holds `path`, and its files of one of the kinds, sorted by key.

    Names that begin with `_` or `.` are skipped, as Spark and Hive do. Raises ConfigError where there are no files, or
    some of two kinds, which may hold the same rows; DataError for a table of a format that has a log.
    """
    if kind_of(path, kinds):
        folder, _, name = path.rpartition("/")
        store = open_store(folder or ".", s3)
        if info := store.head(name):
            return store, [info]
    *others, last = kinds
    wanted = f"{', '.join(others)} or {last}" if others else last
    if os.path.isfile(path.removeprefix("file://")):
        names = ", ".join(end for ends in kinds.values() for end in ends)
        raise ConfigError(f"{setting}: expected a {wanted} file, whose name ends with {names}, got {path}")
    store = open_store(path, s3)  # a folder, whatever its name: Spark calls them a.parquet
    listed = list(store.list(""))
    refuse_tables(listed, f"{setting}: expected files of rows at {path}")
    files = [info for info in listed if kind_of(info.key, kinds)]
    shown = [info for info in files if not is_hidden(info.key)]
    if not shown:
        hint = f"; {len(files)} are skipped, since a name begins with _ or ." if files else ""
        raise ConfigError(f"{setting}: expected a {wanted} file or a folder of them, found none at {path}{hint}")
    examples = {kind_of(info.key, kinds): info.key for info in shown}
    if len(examples) > 1:
        found = " and ".join(f"{kind} ({key})" for kind, key in sorted(examples.items()))
        raise ConfigError(f"{setting}: expected files of one kind at {path}, got {found}; name the file that is meant")
    return store, shown


def refuse_tables(listed: Sequence[ObjectInfo], expected: str) -> None:
    for kind, pattern in TABLE_FORMATS.items():
        if found := next((info.key for info in listed if pattern.search(info.key)), None):
            raise DataError(
                f"{expected}, got a table in {kind}'s format ({found}), some of whose files hold deleted rows; export "
                "it to Parquet, and name what was exported"
            )


def is_hidden(key: str) -> bool:
    """Whether a file, or a folder on the way to it, is no data by its name; `_year=2024` is a folder of Hive's."""
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in key.split("/"))


def folder_columns(key: str) -> dict[str, str | None]:
    """Column → value, of folders that are called like Hive's: {"language": "en"} of `language=en/a.parquet`."""
    pairs = (part.partition("=") for part in key.split("/")[:-1])
    return {
        unquote(name): None if value == NULL_FOLDER else unquote(value)
        for name, is_pair, value in pairs
        if is_pair and name
    }


def kind_of(name: str, kinds: Kinds = ROWS) -> str:
    """The kind of a file by its name; '' where it is none of them."""
    return next((kind for kind, ends in kinds.items() if name.lower().endswith(ends)), "")


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
