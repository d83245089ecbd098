"""Where rows come from: the catalogue's files, or those of precomputed vectors, cut into parts."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from indexing.catalogue.contract import REQUIRED, conform_schema, merge_schemas, no_rows, require_names
from indexing.errors import ConfigError, DataError
from indexing.store import ObjectInfo, Store, open_store
from jobs.config.schema import Config
from jobs.inputs.batches import read_batches
from jobs.inputs.columns import INTERNAL, ColumnRule, Columns, arrange, column_rules
from jobs.inputs.converted import convert_file
from jobs.inputs.files import (
    PARQUET,
    ROWS,
    content_digest,
    folder_columns,
    kind_of,
    list_files,
    open_listed,
    parquet_errors,
    read_footer,
)
from jobs.inputs.precomputed_vectors import Npy, most_common_length, open_npy, require_item_type, require_vectors
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.vectors import VECTOR

PART_ROWS = 65_536
SCAN_THREADS = 16
"""Footers read at the same time: one request each, so latency counts and not the processor."""
CONVERT_THREADS = 2
"""Files converted at the same time: each holds a block of rows."""
DIM_ROWS = 1_024
"""Vectors that are looked at for how many components they have."""
RESERVED = {"collection", "fingerprint", "id_key", "reason", "text"} | {
    f"source_{name}" for name in ("file", "part", "row")
}
"""What `prepare` adds to the rows."""


@dataclass(frozen=True)
class ScannedFile:
    """A Parquet file: one of the user's, or one that was converted from the user's."""

    store: Store
    info: ObjectInfo
    """As it was listed."""
    source: str
    """What messages call it: the user's file."""
    name: str
    """The user's file below the path of the catalogue."""
    columns: Columns
    schema: pa.Schema
    """That of the file; after `read_columns` that of its converted rows."""
    metadata: pq.FileMetaData

    def arranged(self) -> pa.Schema:
        schema = arrange(no_rows(self.schema), self.columns, self.source).schema
        return pa.schema([field for field in schema if field.name not in INTERNAL])


@dataclass(frozen=True)
class Part:
    """Some row groups of one file."""

    number: int
    store: Store
    info: ObjectInfo
    """The file as it was listed."""
    source: str
    name: str
    columns: Columns
    first_row_group: int
    end_row_group: int
    first_row: int

    @property
    def key(self) -> str:
        return self.info.key

    def batches(self) -> Iterator[pa.Table]:
        """The rows in order, as `read_batches` has them, under the contract's names; converted ones with `source_row`,
        `reason` and `text`.

        Raises DataError for invalid Parquet, and where the file was replaced since it was listed.
        """
        with open_listed(self.store, self.info) as file, parquet_errors(self.source):
            for table in read_batches(file, range(self.first_row_group, self.end_row_group)):
                table = arrange(table, self.columns, self.source)
                yield table.rename_columns([INTERNAL.get(name, name) for name in table.column_names])


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
    dim: int | None
    """Components of a precomputed vector; None where an encoder makes them."""

    @property
    def converted(self) -> tuple[str, ...]:
        """Folders of the workspace that have these rows as Parquet, where the user's files are not."""
        return tuple(sorted({part.key.rpartition("/")[0] for part in self.parts if part.key != part.name}))


def scan_source(config: Config, workspace: Store) -> Source:
    """Lists the files and reads their footers, several at once; each file is opened and hashed once.

    CSV and JSON lines are converted into the workspace first, where they are not yet. Raises ConfigError when there
    are no files, DataError on a wrong schema.
    """
    found = scan_files(config, workspace)
    scans = [scan for _, _, of_file in found for scan in of_file]
    num_rows = sum(scan.metadata.num_rows for scan in scans)
    if not num_rows:
        setting, path = source_path(config)
        raise DataError(f"{setting}: expected rows at {path}, got none in {len(found)} files")
    scans = read_columns(config, scans)
    parts: list[Part] = []
    for scan in scans:
        parts += split_file(scan, first_number=len(parts))
    digests = [(info.key, digest) for info, digest, _ in found]
    if npy := find_npy(config, num_rows):
        digests.append((npy.info.key, npy.digest))
    rules = [config.catalogue.columns] if config.catalogue.columns else []
    return Source(parts, unify(scans), num_rows, fingerprint(digests, *rules), npy, find_dim(config, scans, npy))


def scan_files(config: Config, workspace: Store) -> list[tuple[ObjectInfo, str, list[ScannedFile]]]:
    """Of each of the user's files: as it was listed, what changes with its rows, the Parquet files that have them."""
    setting, path = source_path(config)
    store, files = list_files(path, config.s3, setting, ROWS if setting == "catalogue.path" else PARQUET)
    num_threads = SCAN_THREADS if kind_of(files[0].key) == "Parquet" else CONVERT_THREADS
    with ThreadPoolExecutor(num_threads, thread_name_prefix="scan") as pool:
        return list(pool.map(lambda info: (info, *scan_file(store, info, workspace)), files))


def scan_file(store: Store, info: ObjectInfo, workspace: Store) -> tuple[str, list[ScannedFile]]:
    """(a digest of the rows of the file, the Parquet files that have them)."""
    source = store.describe(info.key)
    if kind_of(info.key) == "Parquet":
        with open_listed(store, info) as file:
            scan = scan_parquet(file, store, info, source, info.key)
            require_free_names(scan.schema.names, set(INTERNAL), source)
            return content_digest(store, info, file), [scan]
    digest, converted = convert_file(store, info, workspace)
    scans = []
    for made in converted:
        with open_listed(workspace, made) as file:
            scans.append(scan_parquet(file, workspace, made, source, info.key))
    return digest, scans


def scan_parquet(file: BinaryIO, store: Store, info: ObjectInfo, source: str, name: str) -> ScannedFile:
    metadata, schema = read_footer(file, source)
    return ScannedFile(store, info, source, name, Columns(), schema, metadata)


def read_columns(config: Config, scans: Sequence[ScannedFile]) -> list[ScannedFile]:
    """The files with the way in which their columns are read, and the resulting schema.

    Raises DataError for a rule whose column no file has, and for a wrong schema. A file that was converted in blocks
    counts as one: a column may be missing in some of them.
    """
    rules, item_types = column_rules(config.catalogue), list(config.item_types())
    require_sources(rules, scans)
    scans = [replace(scan, columns=Columns(rules, folder_columns(scan.name))) for scan in scans]
    names: dict[str, set[str]] = {}
    for scan in scans:
        names.setdefault(scan.source, set()).update(scan.arranged().names)
    changed = []
    for scan in scans:
        has_types = "item_type" in names[scan.source] or len(item_types) > 1 or config.vectors.path
        if not has_types:
            constants = {**scan.columns.constants, "item_type": item_types[0]}
            scan = replace(scan, columns=Columns(rules, constants))
        changed.append(replace(scan, schema=check_schema(config, scan.arranged(), names[scan.source], scan.source)))
    return changed


def require_sources(rules: Mapping[str, ColumnRule], scans: Sequence[ScannedFile]) -> None:
    """Raises DataError for a rule whose column no file has."""
    names = sorted(
        {name for scan in scans for name in (*scan.schema.names, *folder_columns(scan.name))} - set(INTERNAL)
    )
    for name, rule in rules.items():
        if rule.name not in names:
            near = difflib.get_close_matches(rule.name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"columns are {', '.join(names)}"
            raise DataError(f"catalogue.columns.{name}: the catalogue has no column {rule.name!r}; {hint}")


def source_path(config: Config) -> tuple[str, str]:
    """(the configuration key that names the files of the rows, their path)."""
    if config.vectors.ids:
        return "vectors.ids", config.vectors.ids
    return (
        ("vectors.path", config.vectors.path) if config.vectors.path else ("catalogue.path", str(config.catalogue.path))
    )


def check_schema(config: Config, schema: pa.Schema, names: Collection[str], source: str) -> pa.Schema:
    """The schema that rows are converted to. `names`: all columns of the file."""
    require_free_names(schema.names, RESERVED, source)
    if not config.vectors.path:
        has_one_type = len(config.item_types()) == 1
        require_names(names, [name for name in REQUIRED if name != "item_type" or not has_one_type], source)
        return conform_schema(schema, source)
    require_item_type(config, schema, source)
    require_names(names, ["item_id"] if config.vectors.ids else ["item_id", VECTOR], source)
    if not config.vectors.ids:
        require_vectors(schema.field(VECTOR).type, source)
    schema = conform_schema(schema, source)
    return pa.schema([field for field in schema if field.name != VECTOR])


def require_free_names(names: Sequence[str], reserved: set[str], source: str) -> None:
    """Raises DataError for a column whose name the stages need."""
    if taken := sorted(reserved.intersection(names)):
        raise DataError(
            f"{source}: the column {taken[0]} has a name that is reserved for the stages; rename it, or say in "
            "catalogue.columns which of the contract it is"
        )


def find_npy(config: Config, num_rows: int) -> Npy | None:
    if not config.vectors.ids:
        return None
    folder, _, key = str(config.vectors.path).rpartition("/")
    store = open_store(folder or ".", config.s3)
    info = store.head(key)
    if info is None:
        raise ConfigError(f"vectors.path: expected a .npy file, found none at {config.vectors.path}")
    return open_npy(store, info, num_rows)


def find_dim(config: Config, scans: Sequence[ScannedFile], npy: Npy | None) -> int | None:
    """The number of components of the .npy, or of most of the first vectors; None where an encoder makes them.

    Raises DataError where there are no vectors.
    """
    if npy or not config.vectors.path:
        return npy.dim if npy else None
    dim = most_common_length(vectors for scan in scans for vectors in vectors_of_file(scan))
    if dim is None:
        raise DataError(
            f"vectors.path: expected vectors in column {VECTOR} at {config.vectors.path}, got empty ones alone"
        )
    return dim


def vectors_of_file(scan: ScannedFile) -> Iterator[pa.Array]:
    """All vectors of a file, DIM_ROWS at a time."""
    with open_listed(scan.store, scan.info) as file, parquet_errors(scan.source):
        for batch in read_batches(file, columns=[VECTOR]):
            for start in range(0, batch.num_rows, DIM_ROWS):
                yield batch[VECTOR].slice(start, DIM_ROWS).combine_chunks()


def split_file(scan: ScannedFile, first_number: int) -> list[Part]:
    """Neighbouring row groups, up to PART_ROWS rows per part (more where a row group alone has more)."""
    parts: list[Part] = []

    def add(start: int, end: int, first_row: int) -> None:
        number = first_number + len(parts)
        parts.append(Part(number, scan.store, scan.info, scan.source, scan.name, scan.columns, start, end, first_row))

    start = first_row = rows = 0
    for group in range(scan.metadata.num_row_groups):
        size = scan.metadata.row_group(group).num_rows
        if rows and rows + size > PART_ROWS:
            add(start, group, first_row)
            start, first_row, rows = group, first_row + rows, 0
        rows += size
    if rows:
        add(start, scan.metadata.num_row_groups, first_row)
    return parts


def unify(scans: Sequence[ScannedFile]) -> pa.Schema:
    """The columns of all files. Raises DataError, naming the file, where a column's types have none in common."""
    merged = scans[0].schema
    for scan in scans[1:]:
        merged = merge_schemas(merged, scan.schema, scan.source)
    return merged
