"""Where rows come from: the catalogue's Parquet files, or those of ready-made vectors, cut into parts."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.catalogue import conform_schema, converts
from indexing.errors import ConfigError, DataError
from indexing.release.commit import hash_object
from indexing.store import S3Settings, Store, open_store
from indexing.store.local import LocalStore

from .config import Config, fingerprint
from .vectors import VECTOR, check_npy, require_types

PART_ROWS = 65_536
RESERVED = {"collection", "fingerprint", "fingerprint_key", "id_key", "reason", "text"} | {
    f"source_{name}" for name in ("file", "part", "row")
}
"""What `prepare` adds to the rows."""


@dataclass(frozen=True)
class Part:
    """Some row groups of one file."""

    number: int
    store: Store
    key: str
    first_row_group: int
    end_row_group: int
    first_row: int

    def read(self) -> pa.Table:
        with self.store.open(self.key) as file, parquet_errors(self.store.describe(self.key)):
            return pq.ParquetFile(file).read_row_groups(range(self.first_row_group, self.end_row_group))


@dataclass(frozen=True)
class Source:
    """All rows, cut into parts; `fingerprint` changes with any byte of the files."""

    parts: list[Part]
    schema: pa.Schema
    """The contract's columns, then those beyond it; never the vectors."""
    num_rows: int
    fingerprint: str
    npy: tuple[Store, str] | None
    """Store and key of the .npy file that holds the vectors of the rows, in order."""


def scan_source(config: Config) -> Source:
    """Lists the files and reads their footers. Raises ConfigError when there are none, DataError on a wrong schema."""
    setting, path = source_path(config)
    store, keys = list_parquet(path, config.s3, setting)
    parts: list[Part] = []
    schemas, digests, num_rows = [], [], 0
    for key in keys:
        with store.open(key) as file:
            metadata, schema = read_footer(file, store.describe(key))
        schemas.append(check_schema(config, schema, store.describe(key)))
        digests.append((key, content_digest(store, key)))
        parts += split_file(store, key, metadata, first_number=len(parts))
        num_rows += metadata.num_rows
    if not num_rows:
        raise DataError(f"{setting}: expected rows at {path}, got none in {len(keys)} files")
    npy = find_npy(config, num_rows)
    if npy:
        digests.append((npy[1], content_digest(*npy)))
    return Source(parts, unify(schemas, keys), num_rows, fingerprint(digests), npy)


def source_path(config: Config) -> tuple[str, str]:
    """(the key of the configuration that names the rows' files, their path)."""
    if config.vectors.ids:
        return "vectors.ids", config.vectors.ids
    return (
        ("vectors.path", config.vectors.path) if config.vectors.path else ("catalogue.path", str(config.catalogue.path))
    )


def check_schema(config: Config, schema: pa.Schema, source: str) -> pa.Schema:
    if taken := sorted(RESERVED.intersection(schema.names)):
        raise DataError(f"{source}: the column {taken[0]} has a name that the stages need for their own; rename it")
    if not config.vectors.path:
        return conform_schema(schema, source)
    required = ["item_id"] if config.vectors.ids else ["item_id", VECTOR]
    require_types(config, schema, source)
    schema = conform_schema(schema, source, required)
    return pa.schema([field for field in schema if field.name != VECTOR])


def find_npy(config: Config, num_rows: int) -> tuple[Store, str] | None:
    if not config.vectors.ids:
        return None
    folder, _, key = str(config.vectors.path).rpartition("/")
    store = open_store(folder or ".", config.s3)
    if store.head(key) is None:
        raise ConfigError(f"vectors.path: expected a .npy file, found none at {config.vectors.path}")
    check_npy(store, key, num_rows)
    return store, key


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


def content_digest(store: Store, key: str) -> str:
    """SHA-256 of a local file; the ETag of an object, which changes with its content."""
    if isinstance(store, LocalStore):
        return hash_object(store, key)
    info = store.head(key)
    if info is None or info.etag is None:
        raise DataError(f"{store.describe(key)}: the object went away while the catalogue was read")
    return info.etag


def split_file(store: Store, key: str, metadata: pq.FileMetaData, first_number: int) -> list[Part]:
    """Neighbouring row groups, up to PART_ROWS rows a part (more where a row group alone has more)."""
    parts: list[Part] = []
    start = first_row = rows = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if rows and rows + size > PART_ROWS:
            parts.append(Part(first_number + len(parts), store, key, start, group, first_row))
            start, first_row, rows = group, first_row + rows, 0
        rows += size
    if rows:
        parts.append(Part(first_number + len(parts), store, key, start, metadata.num_row_groups, first_row))
    return parts


def unify(schemas: list[pa.Schema], keys: list[str]) -> pa.Schema:
    merged = schemas[0]
    for schema, key in zip(schemas[1:], keys[1:], strict=True):
        try:
            merged = pa.unify_schemas([merged, schema])
        except pa.ArrowTypeError as error:
            raise DataError(f"{key}: a column has another type than in {keys[0]}: {error}") from error
    return merged


def read_queries(path: str, s3: S3Settings | None, setting: str) -> list[str]:
    """The distinct, non-blank values of the column `query`, sorted. Raises DataError without such a column."""
    store, keys = list_parquet(path, s3, setting)
    texts: set[str] = set()
    for key in keys:
        with store.open(key) as file:
            _, schema = read_footer(file, store.describe(key))
            if "query" not in schema.names or not converts(schema.field("query").type, pa.string()):
                raise DataError(f"{store.describe(key)}: expected a string column query, got {', '.join(schema.names)}")
            with parquet_errors(store.describe(key)):
                column = pq.ParquetFile(file).read(columns=["query"])["query"]
        texts.update(text for text in pc.unique(column).to_pylist() if text and text.strip())
    if not texts:
        raise DataError(f"{setting}: expected queries in {path}, got none that is not blank")
    return sorted(texts)


def sample_queries(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, always the same ones."""
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode()).digest())[:count]
