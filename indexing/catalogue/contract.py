"""The catalogue contract: which columns a row has, and which rows are good."""

from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.columns import (
    carried_type,
    convert,
    converts,
    is_number,
    is_text,
    merged_type,
    plain_type,
    widen,
)
from indexing.errors import DataError

STRINGS = pa.list_(pa.string())
CONTRACT = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("item_type", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("creators", STRINGS),
        pa.field("parent_title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("genres", STRINGS),
        pa.field("language", pa.string()),
        pa.field("popularity", pa.float32()),
    ]
)
REQUIRED = ("item_id", "item_type", "title")
FINGERPRINT_TYPE = pa.binary(16)
MAX_ID_BYTES = 1024
"""Of an item_id in UTF-8, like a key in S3. Every run holds the ids of whole shards in memory."""
MAX_SHOWN = 100
"""Characters of a value that a reason shows."""


def conform_schema(schema: pa.Schema, source: str) -> pa.Schema:
    """The schema that rows of `source` are converted to: the contract's types, then any other column as it is.

    Raises DataError when a column is repeated, or one of the contract has a type that does not convert.
    """
    require_types(schema, CONTRACT, source)
    others = (field for field in schema if field.name not in CONTRACT.names)
    return pa.schema([*CONTRACT, *(field.with_type(carried_type(field.type)) for field in others)])


def require_names(names: Collection[str], required: Sequence[str], source: str) -> None:
    """Raises DataError for required columns that are missing."""
    if missing := [name for name in required if name not in names]:
        raise DataError(f"{source}: expected columns {', '.join(required)}; {', '.join(missing)} not found")


def require_types(schema: pa.Schema, contract: pa.Schema, source: str) -> None:
    """Raises DataError for a column that is repeated, and one of the contract whose type does not convert."""
    if repeated := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise DataError(f"{source}: expected each column once, got {repeated[0]!r} twice")
    for field in contract:
        if field.name in schema.names and not converts(schema.field(field.name).type, field.type):
            raise DataError(
                f"{source}: expected column {field.name} as {field.type}, got {schema.field(field.name).type}"
            )


def no_rows(schema: pa.Schema) -> pa.Table:
    """A table without rows; Arrow's own `empty_table` refuses some extension types."""
    return pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)


def merge_schemas(one: pa.Schema, other: pa.Schema, source: str) -> pa.Schema:
    """The columns of both, those of `other` that are new after the rest, each of a type that holds the values of both.

    Raises DataError, naming `source`, where there is no such type.
    """
    for field in other:
        if field.name not in one.names:
            one = one.append(field)
            continue
        known, number = one.field(field.name), one.get_field_index(field.name)
        kind = merged_type(known.type, field.type)
        if kind is None:
            raise DataError(
                f"{source}: expected column {field.name} as {known.type}, as in earlier files, got {field.type}"
            )
        one = one.set(number, known.with_type(kind))
    return one


def conform_table(table: pa.Table, schema: pa.Schema, contract: pa.Schema = CONTRACT) -> pa.Table:
    """`table` with the columns of `schema` in that order, converted, and nulls where a column is missing; then
    `reason`: why a row is bad, null where nothing is wrong so far. Reasons that `table` already has are kept.
    """
    empty = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    reasons = table["reason"] if "reason" in table.column_names else empty
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        change = convert if field.name in contract.names else widen
        column, unfit = change(table[field.name], field.type)
        columns.append(column)
        if pc.any(unfit).as_py():
            reasons = pc.coalesce(reasons, pc.if_else(unfit, _why_unfit(table[field.name].type, field), None))
    fields = [field.with_nullable(True) for field in schema]
    return pa.table([*columns, reasons], schema=pa.schema([*fields, ("reason", pa.string())]))


def _why_unfit(actual: pa.DataType, field: pa.Field) -> str:
    if is_number(field.type) and is_text(plain_type(actual)):
        return f"{field.name} is not a number"
    if is_number(field.type) or pa.types.is_temporal(field.type):
        return f"{field.name} does not fit {field.type}"
    return "a string is not valid UTF-8"


def split_rows(table: pa.Table, item_types: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The valid rows of a conformed table, without `reason`; the invalid ones, with it. Duplicates are found later."""
    shown_types = pc.utf8_slice_codeunits(table["item_type"], 0, MAX_SHOWN)
    known = pc.is_in(table["item_type"], value_set=pa.array(item_types, pa.string()))
    found = pc.case_when(
        pc.make_struct(
            is_blank(table["item_id"]),
            pc.greater(pc.binary_length(table["item_id"]), MAX_ID_BYTES),
            is_blank(table["item_type"]),
            is_blank(table["title"]),
            pc.invert(known),
        ),
        "item_id is null or blank",
        f"item_id is longer than {MAX_ID_BYTES} bytes",
        "item_type is null or blank",
        "title is null or blank",
        pc.binary_join_element_wise("item_type '", shown_types, "' is in no collection", ""),
        pa.scalar(None, pa.string()),
    )
    reasons = pc.coalesce(table["reason"], found)
    table, is_good = table.drop_columns("reason"), pc.is_null(reasons)
    bad = table.append_column("reason", reasons).filter(pc.invert(is_good))
    return table.filter(is_good), bad


def is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """bool (num_rows,): whether a text is null or only white space."""
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
