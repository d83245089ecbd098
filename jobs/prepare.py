"""Stage 1: catalogue → checked, fingerprinted rows, sorted for the stages behind.

Each part of the catalogue (some row groups of one file) becomes two runs in the workspace:
`texts-N.parquet` sorted by fingerprint, which `encode` reads by range, and `items-N.parquet` sorted by id key, which
`build` reads by range. Bad rows go to `quarantine/`. No process ever sees more than one part, or one range of ids.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.catalogue import (
    conform_schema,
    conform_table,
    parse_templates,
    render_texts,
    row_fingerprints,
    split_rows,
)
from indexing.errors import ConfigError, DataError
from indexing.sharding import KeyRange, id_keys, key_range
from indexing.store import Store, open_store
from indexing.store.local import LocalStore

from .config import Config, fingerprint
from .progress import Progress
from .workspace import Artifact, read_run, write_run

FORMAT = 1
PART_ROWS = 65_536
ROWS_PER_DUPLICATE_CHECK = 1_000_000


@dataclass(frozen=True)
class CataloguePart:
    """Some row groups of one catalogue file."""

    number: int
    store: Store
    key: str
    first_row_group: int
    end_row_group: int
    first_row: int


@dataclass(frozen=True)
class Catalogue:
    """The files of a catalogue, cut into parts; `fingerprint` changes with any byte of them."""

    parts: list[CataloguePart]
    schema: pa.Schema
    num_rows: int
    fingerprint: str


@dataclass(frozen=True)
class PartSettings:
    """What preparing a part depends on, beside its rows."""

    text: dict[str, str]
    collections: dict[str, str]
    """item_type → collection."""
    encoder_fingerprint: str
    schema: pa.Schema


def prepare(config: Config, workspace: Store, encoder_fingerprint: str, progress: Progress) -> Artifact:
    """Runs the stage, or skips it when its artifact is complete. Raises DataError past `catalogue.max_quarantined`."""
    catalogue = scan_catalogue(config)
    artifact = prepared_artifact(config, workspace, catalogue, encoder_fingerprint)
    if artifact.read_marker():
        return artifact
    settings = part_settings(config, catalogue, encoder_fingerprint)
    results, checks = [], []
    with progress.stage("prepare", catalogue.num_rows) as bar:
        for _, result in fan_out(lambda part: prepare_part.remote(part, settings, artifact), catalogue.parts, what="prepare"):
            results.append(result)
            bar.advance(result["num_rows"])
        num_checks = -(-catalogue.num_rows // ROWS_PER_DUPLICATE_CHECK)
        for _, check in fan_out(
            lambda number: find_duplicates.remote(artifact, len(results), number, key_range(number, num_checks)),
            range(num_checks),
            what="duplicate check",
        ):
            checks.append(check)
    marker = summarise(catalogue, results, checks)
    check_quarantine(marker, config, artifact)
    artifact.write_marker(marker)
    return artifact


def prepared_artifact(config: Config, workspace: Store, catalogue: Catalogue, encoder_fingerprint: str) -> Artifact:
    name = fingerprint(FORMAT, catalogue.fingerprint, config.item_types(), config.catalogue.text, encoder_fingerprint)
    return Artifact(workspace, f"items/{name}")


def part_settings(config: Config, catalogue: Catalogue, encoder_fingerprint: str) -> PartSettings:
    item_types = config.item_types()
    parse_templates(config.catalogue.text, catalogue.schema.names, list(item_types))  # fails here, not on a worker
    return PartSettings(config.catalogue.text, item_types, encoder_fingerprint, catalogue.schema)


def scan_catalogue(config: Config) -> Catalogue:
    """Lists the files and reads their footers. Raises ConfigError when there are none, DataError on a wrong schema."""
    store, keys = list_parquet(str(config.catalogue.path), config, "catalogue.path")
    parts: list[CataloguePart] = []
    schemas, digests, num_rows = [], [], 0
    for key in keys:
        with store.open(key) as file:
            metadata, schema = read_footer(file, f"{store.url}/{key}")
        schemas.append(conform_schema(schema, f"{store.url}/{key}"))
        digests.append((key, content_digest(store, key)))
        parts += split_file(store, key, metadata, first_number=len(parts))
        num_rows += metadata.num_rows
    if not num_rows:
        raise DataError(f"catalogue.path: expected rows in {config.catalogue.path}, got {len(keys)} empty files")
    return Catalogue(parts, unify(schemas, keys), num_rows, fingerprint(digests))


def list_parquet(path: str, config: Config, setting: str) -> tuple[Store, list[str]]:
    """The store that holds `path`, and the keys of its Parquet files, sorted."""
    if path.endswith(".parquet"):
        folder, _, name = path.rpartition("/")
        store = open_store(folder or ".", config.s3)
        keys = [name] if store.head(name) else []
    else:
        store = open_store(path, config.s3)
        keys = [info.key for info in store.list("") if info.key.endswith(".parquet")]
    if not keys:
        raise ConfigError(f"{setting}: expected a Parquet file or a folder of them, found none at {path}")
    return store, keys


def read_footer(file: Any, source: str) -> tuple[pq.FileMetaData, pa.Schema]:
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: expected a Parquet file; {error}") from error
    return parquet.metadata, parquet.schema_arrow


def content_digest(store: Store, key: str) -> str:
    """SHA-256 of a local file; the ETag of an object, which changes with its content."""
    if isinstance(store, LocalStore):
        with store.open(key) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    info = store.head(key)
    if info is None or info.etag is None:
        raise DataError(f"{store.url}/{key}: the object went away while the catalogue was read")
    return info.etag


def split_file(store: Store, key: str, metadata: pq.FileMetaData, first_number: int) -> list[CataloguePart]:
    """Neighbouring row groups, up to PART_ROWS rows a part (more where a row group alone has more)."""
    parts: list[CataloguePart] = []
    start = first_row = rows = 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if rows and rows + size > PART_ROWS:
            parts.append(CataloguePart(first_number + len(parts), store, key, start, group, first_row))
            start, first_row, rows = group, first_row + rows, 0
        rows += size
    if rows:
        parts.append(CataloguePart(first_number + len(parts), store, key, start, metadata.num_row_groups, first_row))
    return parts


def unify(schemas: list[pa.Schema], keys: list[str]) -> pa.Schema:
    merged = schemas[0]
    for schema, key in zip(schemas[1:], keys[1:], strict=True):
        try:
            merged = pa.unify_schemas([merged, schema])
        except pa.ArrowTypeError as error:
            raise DataError(f"{key}: a column has another type than in {keys[0]}: {error}") from error
    return merged


@ray.remote
def prepare_part(part: CataloguePart, settings: PartSettings, artifact: Artifact) -> dict[str, Any]:
    """Checks, renders and fingerprints one part; writes its runs and its quarantine."""
    good, bad = check_part(part, settings)
    name = f"{part.number:05d}.parquet"
    if bad.num_rows:
        artifact.store.put(artifact.key(f"quarantine/{name}"), parquet_bytes(bad))
    write_run(
        artifact.store,
        artifact.key(f"texts-{name}"),
        good.select(["fingerprint_key", "fingerprint", "item_id", "id_key", "text"]),
        sort_by=["fingerprint_key", "fingerprint", "item_id"],
    )
    write_run(
        artifact.store,
        artifact.key(f"items-{name}"),
        good.drop_columns(["fingerprint_key", "text"]),
        sort_by=["collection", "id_key", "item_id", "source_part", "source_row"],
    )
    return {
        "num_rows": good.num_rows + bad.num_rows,
        "reasons": Counter(bad["reason"].to_pylist()),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def check_part(part: CataloguePart, settings: PartSettings) -> tuple[pa.Table, pa.Table]:
    """(good rows with text, fingerprint, keys and collection; bad rows with their reason), both with their source."""
    with part.store.open(part.key) as file:
        raw = pq.ParquetFile(file).read_row_groups(range(part.first_row_group, part.end_row_group))
    table = conform_table(raw, settings.schema)
    rows = pa.array(range(part.first_row, part.first_row + table.num_rows), pa.int64())
    table = table.append_column("source_part", pa.repeat(part.number, table.num_rows)).append_column("source_row", rows)
    good, bad = split_rows(table, list(settings.collections))
    texts = render_texts(good, parse_templates(settings.text, settings.schema.names, list(settings.collections)))
    blank = pc.equal(texts, "")
    if pc.any(blank).as_py():
        reason = pa.repeat("its text is empty", pc.sum(blank).as_py())
        bad = pa.concat_tables([bad, good.filter(blank).append_column("reason", reason)])
        good, texts = good.filter(pc.invert(blank)), texts.filter(pc.invert(blank))
    fingerprints = row_fingerprints(texts, settings.encoder_fingerprint)
    columns = {
        "text": texts,
        "fingerprint": fingerprints,
        "fingerprint_key": fingerprint_keys(fingerprints),
        "id_key": id_keys(good["item_id"].to_pylist()),
        "collection": [settings.collections[kind] for kind in good["item_type"].to_pylist()],
    }
    for name, column in columns.items():
        good = good.append_column(name, pa.array(column))
    return good, bad.append_column("source_file", pa.repeat(part.key, bad.num_rows))


def fingerprint_keys(fingerprints: pa.Array) -> pa.Array:
    """uint64 (num_rows,): the first 8 bytes of each fingerprint, big-endian, as the key of its range."""
    import numpy as np

    data = np.frombuffer(b"".join(fingerprints.to_pylist()), dtype=">u8").reshape(-1, 2)
    return pa.array(data[:, 0].astype(np.uint64))


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


@ray.remote
def find_duplicates(artifact: Artifact, num_parts: int, number: int, keys: KeyRange) -> dict[str, Any]:
    """Rows of one id range whose id another row has already, which stays: the first by part and row."""
    columns = ["id_key", "item_id", "collection", "source_part", "source_row"]
    rows = read_parts(artifact, "items", num_parts, "id_key", keys, columns=columns)
    order = [(name, "ascending") for name in ("id_key", "item_id", "source_part", "source_row")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=order))
    ids = rows["item_id"].combine_chunks()
    same = pa.concat_arrays([pa.array([False]), pc.equal(ids[1:], ids[:-1])]) if len(ids) else pa.array([], pa.bool_())
    duplicates = rows.filter(same)
    if duplicates.num_rows:
        write_run(artifact.store, artifact.key(f"duplicates-{number:05d}.parquet"), duplicates, sort_by=columns)
    return {
        "number": number,
        "num_duplicates": duplicates.num_rows,
        "examples": duplicates["item_id"].to_pylist()[:3],
        "num_items": Counter(rows.filter(pc.invert(same))["collection"].to_pylist()),
    }


def read_parts(
    artifact: Artifact, kind: str, num_parts: int, key_column: str, keys: KeyRange, **selection: Any
) -> pa.Table:
    """The rows in `keys` of the runs `kind`-N of all parts."""
    names = [artifact.key(f"{kind}-{number:05d}.parquet") for number in range(num_parts)]
    return pa.concat_tables([read_run(artifact.store, name, key_column, keys, **selection) for name in names])


def summarise(catalogue: Catalogue, results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> dict[str, Any]:
    reasons: Counter[str] = sum((result["reasons"] for result in results), Counter())
    if num_duplicates := sum(check["num_duplicates"] for check in checks):
        examples = sorted(example for check in checks for example in check["examples"])[:3]
        reasons[f"item_id stands in an earlier row already (such as {', '.join(examples)})"] = num_duplicates
    return {
        "catalogue_fingerprint": catalogue.fingerprint,
        "num_parts": len(results),
        "duplicate_runs": sorted(check["number"] for check in checks if check["num_duplicates"]),
        "num_rows": catalogue.num_rows,
        "num_items": dict(sorted(sum((check["num_items"] for check in checks), Counter()).items())),
        "quarantined": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
    }


def check_quarantine(marker: dict[str, Any], config: Config, artifact: Artifact) -> None:
    """Raises DataError when too many rows were bad, or a collection got no items."""
    num_bad, num_rows = sum(marker["quarantined"].values()), marker["num_rows"]
    if num_bad > config.catalogue.max_quarantined * num_rows:
        worst, count = next(iter(marker["quarantined"].items()))
        raise DataError(
            f"{num_bad} of {num_rows} rows break the catalogue contract, catalogue.max_quarantined allows "
            f"{config.catalogue.max_quarantined:.2%}; {count} rows: {worst}; see {artifact.store.url}/{artifact.path}"
        )
    for name, group in config.catalogue.collections.items():
        if not marker["num_items"].get(name):
            raise DataError(f"collection {name}: the catalogue has no good row of item type {', '.join(group.item_types)}")
