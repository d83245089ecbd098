"""The rows of a part: checked against the contract, with text or vector, fingerprint and keys."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.contract import conform_table, split_rows
from indexing.catalogue.text import parse_templates, render_texts, row_fingerprints
from indexing.key_ranges import id_keys
from indexing.store import Store
from jobs.config.schema import Config
from jobs.inputs.catalogue import Part, Source
from jobs.inputs.precomputed_vectors import column_vectors, fill_defaults, normalise, read_npy_rows, vector_fingerprints
from jobs.workspace.vectors import VECTOR, vector_column


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


def part_settings(config: Config, source: Source, encoder_fingerprint: str | None) -> PartSettings:
    item_types, text = config.item_types(), config.catalogue.text if encoder_fingerprint else {}
    if encoder_fingerprint:
        parse_templates(text, source.schema.names, list(item_types))  # fails here, not on a worker
    return PartSettings(source.schema, item_types, text, encoder_fingerprint, source.npy)


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
