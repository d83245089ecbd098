"""Parquet files of the user's: found, their footers read, their errors in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.errors import ConfigError, DataError
from indexing.store import S3Settings, Store, open_store


def list_parquet(path: str, s3: S3Settings | None, setting: str) -> tuple[Store, list[str]]:
    """The store that holds `path`, and the keys of its Parquet files, sorted."""
    if path.endswith(".parquet"):
        folder, _, name = path.rpartition("/")
        store = open_store(folder or ".", s3)
        if store.head(name):
            return store, [name]
    store = open_store(path, s3)  # a folder, whatever its name: Spark calls them a.parquet
    keys = [info.key for info in store.list("") if info.key.endswith(".parquet")]
    if not keys:
        raise ConfigError(f"{setting}: expected a Parquet file or a folder of them, found none at {path}")
    return store, keys


def read_footer(file: Any, source: str) -> tuple[pq.FileMetaData, pa.Schema]:
    with parquet_errors(source):
        parquet = pq.ParquetFile(file)
        return parquet.metadata, parquet.schema_arrow


@contextmanager
def parquet_errors(source: str) -> Iterator[None]:
    """What Arrow raises over bytes that are no sound Parquet, an OSError among it, as DataError naming `source`."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source}: expected a Parquet file; {str(error).strip().splitlines()[0]}") from error
