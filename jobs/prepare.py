"""Stage 1: rows → checked, fingerprinted rows, sorted for the stages behind.

Each part becomes runs in the workspace: `items-N` sorted by id key, which `build` reads by range, and `texts-N` sorted
by fingerprint, which `encode` reads by range (or `vectors-N`, sorted by id key, where vectors come ready-made). Bad
rows go to `quarantine/`. No process ever sees more than one part, or one range of ids.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from cluster.fanout import fan_out, peak_memory_bytes
from indexing.catalogue import conform_table, parse_templates, render_texts, row_fingerprints, split_rows
from indexing.errors import DataError
from indexing.sharding import KeyRange, id_keys, key_range
from indexing.store import Store

from .config import Config, fingerprint
from .progress import Progress
from .source import Part, Source, scan_source
from .vectors import (
    VECTOR,
    column_vectors,
    fill_defaults,
    normalise,
    read_npy_rows,
    vector_column,
    vector_fingerprints,
)
from .workspace import Artifact, parquet_bytes, read_run, write_run

FORMAT = 1
ROWS_PER_DUPLICATE_CHECK = 1_000_000
ITEM_ORDER = ["collection", "id_key", "item_id", "source_part", "source_row"]


@dataclass(frozen=True)
class PartSettings:
    """What preparing a part depends on, beside its rows."""

    schema: pa.Schema
    collections: dict[str, str]
    """item_type → collection."""
    text: dict[str, str]
    encoder_fingerprint: str | None
    """None where vectors come ready-made: in the column `vector`, or in `npy`."""
    npy: tuple[Store, str] | None


def prepare(config: Config, workspace: Store, encoder_fingerprint: str | None, progress: Progress) -> Artifact:
    """Runs the stage, or skips it when its artifact is complete. Raises DataError past `catalogue.max_quarantined`."""
    source = scan_source(config)
    settings = part_settings(config, source, encoder_fingerprint)
    artifact = prepared_artifact(config, workspace, source, encoder_fingerprint)
    if done := artifact.read_marker():
        check_quarantine(done, config, artifact)  # what is allowed may have changed since
        return artifact
    results, checks = [], []
    with progress.stage("prepare", source.num_rows) as bar:
        for _, result in fan_out(
            lambda part: prepare_part.remote(part, settings, artifact), source.parts, what="prepare"
        ):
            results.append(result)
            bar.advance(result["num_rows"])
        num_checks = -(-source.num_rows // ROWS_PER_DUPLICATE_CHECK)
        for _, check in fan_out(
            lambda number: find_duplicates.remote(artifact, len(results), number, key_range(number, num_checks)),
            range(num_checks),
            what="duplicate check",
        ):
            checks.append(check)
    marker = summarise(source, results, checks)
    check_quarantine(marker, config, artifact)
    artifact.write_marker(marker)
    return artifact


def prepared_artifact(config: Config, workspace: Store, source: Source, encoder_fingerprint: str | None) -> Artifact:
    settings = part_settings(config, source, encoder_fingerprint)
    name = fingerprint(FORMAT, source.fingerprint, settings.collections, settings.text, encoder_fingerprint)
    return Artifact(workspace, f"items/{name}")


def part_settings(config: Config, source: Source, encoder_fingerprint: str | None) -> PartSettings:
    item_types, text = config.item_types(), config.catalogue.text if encoder_fingerprint else {}
    if encoder_fingerprint:
        parse_templates(text, source.schema.names, list(item_types))  # fails here, not on a worker
    return PartSettings(source.schema, item_types, text, encoder_fingerprint, source.npy)


@ray.remote
def prepare_part(part: Part, settings: PartSettings, artifact: Artifact) -> dict[str, Any]:
    """Checks and fingerprints one part; writes its runs and its quarantine."""
    good, bad = check_part(part, settings)
    name = f"{part.number:05d}.parquet"
    if bad.num_rows:
        artifact.store.put(artifact.key(f"quarantine/{name}"), parquet_bytes(bad))
    payload = "text" if settings.encoder_fingerprint else VECTOR
    items = good.drop_columns([payload, "fingerprint_key"])
    write_run(artifact.store, artifact.key(f"items-{name}"), items, sort_by=ITEM_ORDER)
    if payload == "text":
        texts = good.select(["fingerprint_key", "fingerprint", "item_id", "id_key", "text"])
        write_run(artifact.store, artifact.key(f"texts-{name}"), texts, sort_by=texts.column_names[:3])
    else:
        vectors = good.select(["id_key", "item_id", "fingerprint", VECTOR])
        write_run(artifact.store, artifact.key(f"vectors-{name}"), vectors, sort_by=vectors.column_names[:3])
    return {
        "num_rows": good.num_rows + bad.num_rows,
        "reasons": Counter(bad["reason"].to_pylist()),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def check_part(part: Part, settings: PartSettings) -> tuple[pa.Table, pa.Table]:
    """(good rows with text or vector, fingerprint, keys, collection; bad rows with a reason), both with source."""
    raw = part.read()
    rows = pa.array(range(part.first_row, part.first_row + raw.num_rows), pa.int64())
    table = conform_table(raw, settings.schema)
    table = table.append_column("source_part", pa.repeat(part.number, table.num_rows)).append_column("source_row", rows)
    add_content = add_texts if settings.encoder_fingerprint else add_vectors
    good, bad = add_content(part, settings, raw, table)
    columns = {
        "fingerprint_key": fingerprint_keys(good["fingerprint"]),
        "id_key": id_keys(good["item_id"].to_pylist()),
        "collection": pa.array([settings.collections[kind] for kind in good["item_type"].to_pylist()], pa.string()),
    }
    for name, column in columns.items():
        good = good.append_column(name, pa.array(column))
    return good, bad.append_column("source_file", pa.repeat(part.key, bad.num_rows))


def add_texts(part: Part, settings: PartSettings, raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Good rows with `text` and `fingerprint`, and bad rows."""
    item_types = list(settings.collections)
    good, bad = split_rows(table, item_types)
    texts = render_texts(good, parse_templates(settings.text, settings.schema.names, item_types))
    good = good.append_column("text", texts)
    good, bad = move_bad(good, bad, pc.equal(texts, ""), "its text is empty")
    fingerprints = row_fingerprints(good["text"], str(settings.encoder_fingerprint))
    return good.append_column("fingerprint", fingerprints), bad.append_column(
        "text", pa.nulls(bad.num_rows, pa.string())
    )


def add_vectors(part: Part, settings: PartSettings, raw: pa.Table, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Good rows with `vector` (unit norm) and `fingerprint`, and bad rows."""
    item_types = list(settings.collections)
    good, bad = split_rows(fill_defaults(table, item_types), item_types)
    if settings.npy:
        vectors = read_npy_rows(*settings.npy, part.first_row, raw.num_rows)
    else:
        vectors = column_vectors(raw[VECTOR], part.store.describe(part.key))
    vectors, unusable = normalise(vectors[good["source_row"].to_numpy() - part.first_row])
    good = good.append_column(VECTOR, vector_column(vectors)).append_column("fingerprint", vector_fingerprints(vectors))
    bad = bad.append_column(VECTOR, pa.nulls(bad.num_rows, good[VECTOR].type))
    bad = bad.append_column("fingerprint", pa.nulls(bad.num_rows, good["fingerprint"].type))
    return move_bad(good, bad, pa.array(unusable), "its vector is zero or not finite")


def move_bad(good: pa.Table, bad: pa.Table, mask: pa.Array, reason: str) -> tuple[pa.Table, pa.Table]:
    """The rows of `good` that `mask` marks go over to `bad` with that reason."""
    moved = good.filter(mask)
    moved = moved.append_column("reason", pa.repeat(reason, moved.num_rows))
    return good.filter(pc.invert(mask)), pa.concat_tables([bad, moved.select(bad.column_names)])


def fingerprint_keys(fingerprints: pa.ChunkedArray) -> np.ndarray:
    """uint64 (num_rows,): the first 8 bytes of each fingerprint, big-endian, as the key of its range."""
    data = np.frombuffer(b"".join(fingerprints.to_pylist()), dtype=">u8").reshape(-1, 2)
    return data[:, 0].astype(np.uint64)


@ray.remote
def find_duplicates(artifact: Artifact, num_parts: int, number: int, keys: KeyRange) -> dict[str, Any]:
    """Rows of one id range whose id another row has already, which stays: the first by part and row."""
    columns = ["id_key", "item_id", "collection", "source_part", "source_row"]
    rows = read_parts(artifact, "items", num_parts, "id_key", keys, columns=columns)
    order = [(name, "ascending") for name in ("id_key", "item_id", "source_part", "source_row")]
    rows = rows.take(pc.sort_indices(rows, sort_keys=order))
    ids = rows["item_id"].combine_chunks()
    is_repeated = pa.concat_arrays([pa.nulls(min(1, len(ids)), pa.bool_()), pc.equal(ids[1:], ids[:-1])]).fill_null(
        False
    )
    repeated = rows.filter(is_repeated)
    if repeated.num_rows:
        write_run(artifact.store, artifact.key(f"duplicates-{number:05d}.parquet"), repeated, sort_by=columns)
    return {
        "number": number,
        "num_duplicates": repeated.num_rows,
        "examples": repeated["item_id"].to_pylist()[:3],
        "num_items": Counter(rows.filter(pc.invert(is_repeated))["collection"].to_pylist()),
    }


def read_parts(
    artifact: Artifact, kind: str, num_parts: int, key_column: str, keys: KeyRange, **selection: Any
) -> pa.Table:
    """The rows in `keys` of the runs `kind`-N of all parts."""
    names = [artifact.key(f"{kind}-{number:05d}.parquet") for number in range(num_parts)]
    return pa.concat_tables([read_run(artifact.store, name, key_column, keys, **selection) for name in names])


def summarise(source: Source, results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> dict[str, Any]:
    reasons: Counter[str] = sum((result["reasons"] for result in results), Counter())
    if num_duplicates := sum(check["num_duplicates"] for check in checks):
        examples = sorted(example for check in checks for example in check["examples"])[:3]
        reasons[f"item_id stands in an earlier row already, such as {', '.join(examples)}"] = num_duplicates
    return {
        "catalogue_fingerprint": source.fingerprint,
        "num_parts": len(results),
        "duplicate_runs": sorted(check["number"] for check in checks if check["num_duplicates"]),
        "num_rows": source.num_rows,
        "num_items": dict(sorted(sum((check["num_items"] for check in checks), Counter()).items())),
        "quarantined": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "peak_memory_bytes": max(result["peak_memory_bytes"] for result in results),
    }


def check_quarantine(marker: dict[str, Any], config: Config, artifact: Artifact) -> None:
    """Raises DataError when too many rows were bad, or a collection got no items."""
    num_bad, num_rows = sum(marker["quarantined"].values()), marker["num_rows"]
    if num_bad > config.catalogue.max_quarantined * num_rows:
        reason, count = next(iter(marker["quarantined"].items()))
        where = artifact.store.describe(artifact.key("quarantine"))
        raise DataError(
            f"expected at most {config.catalogue.max_quarantined:.2%} bad rows (catalogue.max_quarantined), got "
            f"{num_bad} of {num_rows}; {count} of them: {reason}; all are in {where}"
        )
    for name, group in config.catalogue.collections.items():
        if not marker["num_items"].get(name):
            kinds = ", ".join(group.item_types)
            raise DataError(
                f"expected items of type {kinds} for the collection {name}, got no good row; see catalogue.collections"
            )
