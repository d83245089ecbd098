"""The rows of a part: checked against the contract, with text or vector, then with fingerprint and keys."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.contract import conform_table, no_rows, split_rows
from indexing.catalogue.text import parse_templates, render_texts, row_fingerprints
from indexing.id_keys import id_keys
from indexing.search.values import plain_value
from jobs.config.schema import Config
from jobs.inputs.catalogue import RESERVED, Part, Source
from jobs.inputs.precomputed_vectors import Npy, column_vectors, fill_titles, fill_types, normalise, vector_fingerprints
from jobs.workspace.vectors import VECTOR, vector_column, vectors_of

POSITION = "nightcrate:position"
"""Of a row in its part; a column while the part is checked."""
MAX_EXCERPT = 200
BAD_ROWS = pa.schema(
    [
        pa.field("source_file", pa.string()),
        pa.field("source_row", pa.int64()),
        pa.field("item_id", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("excerpt", pa.string()),
    ]
)


@dataclass(frozen=True)
class RowRules:
    """What makes a row good, and what becomes of it; plain data, so that Ray can ship it."""

    schema: pa.Schema
    collections: dict[str, str]
    """item_type → collection."""
    text: dict[str, str] | None
    """Templates by item type; None where vectors come precomputed: in the column `vector`, or in `npy`."""
    npy: Npy | None
    dim: int | None
    """Components of a precomputed vector; None with templates."""


def row_rules(config: Config, source: Source) -> RowRules:
    """Raises ConfigError for a template that does not fit the catalogue."""
    item_types, text = config.item_types(), None if config.vectors.path else config.catalogue.text
    if text is not None:
        templates = parse_templates(text, source.schema.names, list(item_types))
        render_texts(no_rows(source.schema), templates)  # what cannot be text fails here, not on a worker
    return RowRules(source.schema, item_types, text, source.npy, source.dim)


def check_part(part: Part, rules: RowRules) -> Iterator[tuple[pa.Table, pa.Table]]:
    """`check_rows` of each batch of the part."""
    first_row = part.first_row
    for raw in part.batches():
        yield check_rows(part, rules, raw, first_row)
        first_row += raw.num_rows


def check_rows(part: Part, rules: RowRules, raw: pa.Table, first_row: int) -> tuple[pa.Table, pa.Table]:
    """(good rows with `text` or `vector`, and source_part and source_row; bad rows as BAD_ROWS).

    `raw` are rows of the part as they came, the first of them row `first_row` of its file.
    """
    rows = pa.array(range(first_row, first_row + raw.num_rows), pa.int64())
    if "source_row" in raw.column_names:  # lines of the file that were no rows count too
        rows = raw["source_row"]
    table = conform_table(raw, rules.schema)
    table = table.append_column("source_part", pa.repeat(part.number, table.num_rows)).append_column("source_row", rows)
    table = table.append_column(POSITION, pa.array(range(table.num_rows), pa.int64()))
    if rules.text is None:
        good, bad = add_vectors(rules, raw, table, first_row)
    else:
        good, bad = add_texts(rules.text, rules, table)
    return good.drop_columns(POSITION), describe_bad(part, raw, bad)


def describe_bad(part: Part, raw: pa.Table, bad: pa.Table) -> pa.Table:
    excerpts = [excerpt(raw, position) for position in bad[POSITION].to_pylist()]
    columns = {
        "source_file": pa.repeat(part.name, bad.num_rows),
        **{name: bad[name] for name in ("source_row", "item_id", "reason")},
        "excerpt": pa.array(excerpts, pa.string()),
    }
    return pa.table(columns, schema=BAD_ROWS)


def excerpt(raw: pa.Table, row: int) -> str:
    """The beginning of a row as it came: the text of its line where it is none, else its columns and their values."""
    line = plain_value(raw["text"][row]) if "text" in raw.column_names else None
    if line is None:
        columns = [name for name in raw.column_names if name not in RESERVED | {VECTOR}]
        values = {name: plain_value(raw[name][row]) for name in columns}
        line = "; ".join(f"{name}: {str(value)[:MAX_EXCERPT]}" for name, value in values.items() if value is not None)
    return str(line)[:MAX_EXCERPT]


def add_texts(text: dict[str, str], rules: RowRules, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Good rows with `text`, and bad rows."""
    item_types = list(rules.collections)
    good, bad = split_rows(table, item_types)
    texts = render_texts(good, parse_templates(text, rules.schema.names, item_types))
    return move_bad(good.append_column("text", texts), bad, pc.equal(texts, ""), "its text is empty")


def add_vectors(rules: RowRules, raw: pa.Table, table: pa.Table, first_row: int) -> tuple[pa.Table, pa.Table]:
    """Good rows with `vector` (unit norm), and bad rows."""
    item_types = list(rules.collections)
    good, bad = split_rows(fill_titles(fill_types(table, item_types)), item_types)
    if rules.npy:
        vectors = rules.npy.read_rows(first_row, raw.num_rows)
        unfit = np.zeros(len(vectors), bool)
    else:
        assert rules.dim is not None
        vectors, unfit = column_vectors(raw[VECTOR], rules.dim)
    positions = good[POSITION].to_numpy()
    vectors, unusable = normalise(vectors[positions])
    good = good.append_column(VECTOR, vector_column(vectors))
    is_short = unfit[positions]
    good, bad = move_bad(good, bad, pa.array(is_short), f"its vector does not have {rules.dim} components")
    return move_bad(good, bad, pa.array(unusable[~is_short]), "its vector is zero or not finite")


def row_texts(rules: RowRules, rows: pa.Table) -> pa.ChunkedArray:
    """string (num_rows,): what the encoder reads of good rows, from their columns."""
    return render_texts(rows, parse_templates(rules.text or {}, rows.column_names, list(rules.collections)))


def move_bad(good: pa.Table, bad: pa.Table, mask: pa.Array, reason: str) -> tuple[pa.Table, pa.Table]:
    """Moves the rows that `mask` marks from `good` to `bad` with that reason; only columns of `bad` are kept."""
    moved = good.filter(mask)
    moved = moved.append_column("reason", pa.repeat(reason, moved.num_rows))
    return good.filter(pc.invert(mask)), pa.concat_tables([bad, moved.select(bad.column_names)])


def add_keys(good: pa.Table, rules: RowRules, encoder_fingerprint: str | None) -> pa.Table:
    """Good rows of `check_part` with `fingerprint`, by which vectors are found, `id_key` and `collection`."""
    if encoder_fingerprint is None:
        fingerprints = vector_fingerprints(vectors_of(good))
    else:
        fingerprints = row_fingerprints(good["text"], encoder_fingerprint)
    columns = {
        "fingerprint": fingerprints,
        "id_key": id_keys(good["item_id"].to_pylist()),
        "collection": pa.array([rules.collections[kind] for kind in good["item_type"].to_pylist()], pa.string()),
    }
    for name, column in columns.items():
        good = good.append_column(name, pa.array(column))
    return good
