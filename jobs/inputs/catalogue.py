"""Where rows come from: the catalogue's Parquet files, or those of precomputed vectors, cut into parts."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.catalogue.contract import conform_schema
from indexing.errors import ConfigError, DataError
from indexing.store import Store, open_store
from indexing.store.blobs import hash_object
from indexing.store.local import LocalStore
from jobs.config.schema import Config
from jobs.inputs.parquet import list_parquet, parquet_errors, read_footer
from jobs.inputs.precomputed_vectors import check_npy, require_types
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.vectors import VECTOR

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
