"""Where rows come from: the catalogue's Parquet files, or those of precomputed vectors, cut into parts."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.catalogue.contract import conform_schema, merge_schemas
from indexing.errors import ConfigError, DataError
from indexing.store import ObjectInfo, Store, open_store
from jobs.config.schema import Config
from jobs.inputs.parquet import content_digest, list_parquet, open_listed, parquet_errors, read_footer
from jobs.inputs.precomputed_vectors import Npy, open_npy, require_types
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.vectors import VECTOR

PART_ROWS = 65_536
SCAN_THREADS = 16
"""Footers read at the same time: one request each, so latency counts and not the processor."""
RESERVED = {"collection", "fingerprint", "fingerprint_key", "id_key", "reason", "text"} | {
    f"source_{name}" for name in ("file", "part", "row")
}
"""What `prepare` adds to the rows."""


@dataclass(frozen=True)
class Part:
    """Some row groups of one file."""

    number: int
    store: Store
    info: ObjectInfo
    """The file as it was listed."""
    first_row_group: int
    end_row_group: int
    first_row: int

    @property
    def key(self) -> str:
        return self.info.key

    def read(self) -> pa.Table:
        """Raises DataError for invalid Parquet, and where the file was replaced since it was listed."""
        with open_listed(self.store, self.info) as file, parquet_errors(self.store.describe(self.key)):
            return pq.ParquetFile(file).read_row_groups(range(self.first_row_group, self.end_row_group))


@dataclass(frozen=True)
class Source:
    """All rows, cut into parts; `fingerprint` changes with any byte of the files."""

    parts: list[Part]
    schema: pa.Schema
    """The contract's columns, then those beyond it; never the vectors."""
    num_rows: int
    fingerprint: str
    npy: Npy | None
    """The .npy file that holds the vectors of the rows, in order."""


@dataclass(frozen=True)
class FileScan:
    """What is known of one file before its rows are read."""

    info: ObjectInfo
    metadata: pq.FileMetaData
    schema: pa.Schema
    digest: str


def scan_source(config: Config) -> Source:
    """Lists the files and reads their footers, several at once; each file is opened and hashed once.

    Raises ConfigError when there are none, DataError on a wrong schema.
    """
    setting, path = source_path(config)
    store, files = list_parquet(path, config.s3, setting)
    with ThreadPoolExecutor(SCAN_THREADS, thread_name_prefix="scan") as pool:
        scans = list(pool.map(lambda info: scan_file(config, store, info), files))
    num_rows = sum(scan.metadata.num_rows for scan in scans)
    if not num_rows:
        raise DataError(f"{setting}: expected rows at {path}, got none in {len(files)} files")
    parts: list[Part] = []
    for scan in scans:
        parts += split_file(store, scan.info, scan.metadata, first_number=len(parts))
    digests = [(scan.info.key, scan.digest) for scan in scans]
    npy = find_npy(config, num_rows)
    if npy:
        digests.append((npy.info.key, npy.digest))
    return Source(parts, unify(scans, store.describe), num_rows, fingerprint(digests), npy)


def scan_file(config: Config, store: Store, info: ObjectInfo) -> FileScan:
    source = store.describe(info.key)
    with open_listed(store, info) as file:
        metadata, schema = read_footer(file, source)
        return FileScan(info, metadata, check_schema(config, schema, source), content_digest(store, info, file))


def source_path(config: Config) -> tuple[str, str]:
    """(the configuration key that names the files of the rows, their path)."""
    if config.vectors.ids:
        return "vectors.ids", config.vectors.ids
    return (
        ("vectors.path", config.vectors.path) if config.vectors.path else ("catalogue.path", str(config.catalogue.path))
    )


def check_schema(config: Config, schema: pa.Schema, source: str) -> pa.Schema:
    if taken := sorted(RESERVED.intersection(schema.names)):
        raise DataError(f"{source}: the column {taken[0]} has a name that is reserved for the stages; rename it")
    if not config.vectors.path:
        return conform_schema(schema, source)
    required = ["item_id"] if config.vectors.ids else ["item_id", VECTOR]
    require_types(config, schema, source)
    schema = conform_schema(schema, source, required)
    return pa.schema([field for field in schema if field.name != VECTOR])


def find_npy(config: Config, num_rows: int) -> Npy | None:
    if not config.vectors.ids:
        return None
    folder, _, key = str(config.vectors.path).rpartition("/")
    store = open_store(folder or ".", config.s3)
    info = store.head(key)
    if info is None:
        raise ConfigError(f"vectors.path: expected a .npy file, found none at {config.vectors.path}")
    return open_npy(store, info, num_rows)


def split_file(store: Store, info: ObjectInfo, metadata: pq.FileMetaData, first_number: int) -> list[Part]:
    """Neighbouring row groups, up to PART_ROWS rows a part (more where a row group alone has more)."""
    parts: list[Part] = []
    start = first_row = rows = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if rows and rows + size > PART_ROWS:
            parts.append(Part(first_number + len(parts), store, info, start, group, first_row))
            start, first_row, rows = group, first_row + rows, 0
        rows += size
    if rows:
        parts.append(Part(first_number + len(parts), store, info, start, metadata.num_row_groups, first_row))
    return parts


def unify(scans: Sequence[FileScan], describe: Callable[[str], str]) -> pa.Schema:
    """The columns of all files. Raises DataError, naming the file, where a column's types have none in common."""
    merged = scans[0].schema
    for scan in scans[1:]:
        merged = merge_schemas(merged, scan.schema, describe(scan.info.key))
    return merged
