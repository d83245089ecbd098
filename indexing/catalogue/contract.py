"""The catalogue contract: which columns a row has, and which rows are good."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

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


def conform_schema(schema: pa.Schema, source: str, required: Sequence[str] = REQUIRED) -> pa.Schema:
    """The schema that rows of `source` are cast to: the contract's types, then any other column as it is.

    Raises DataError when a required column is missing or a contract column has a type that does not convert.
    """
    missing = [name for name in required if name not in schema.names]
    if missing:
        raise DataError(f"{source}: expected columns {', '.join(required)}; {', '.join(missing)} not found")
    for field in CONTRACT:
        if field.name in schema.names and not converts(schema.field(field.name).type, field.type):
            raise DataError(
                f"{source}: expected column {field.name} as {field.type}, got {schema.field(field.name).type}"
            )
    return pa.schema([*CONTRACT, *(field for field in schema if field.name not in CONTRACT.names)])


def converts(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column of type `actual` can be cast to the contract's type `expected` without loss of meaning."""
    if pa.types.is_null(actual):
        return True
    if pa.types.is_dictionary(actual):
        actual = actual.value_type
    if pa.types.is_list(expected):
        is_list = pa.types.is_list(actual) or pa.types.is_large_list(actual) or pa.types.is_list_view(actual)
        return bool(is_list) and converts(actual.value_type, expected.value_type)
    if pa.types.is_string(expected):
        return bool(pa.types.is_string(actual) or pa.types.is_large_string(actual) or pa.types.is_string_view(actual))
    return bool(pa.types.is_floating(actual) or pa.types.is_integer(actual))


def conform_table(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns of `schema` in that order, cast, and nulls where a column is missing."""
    columns = [
        table.column(field.name).cast(field.type, safe=False)
        if field.name in table.column_names
        else pa.chunked_array([pa.nulls(table.num_rows, field.type)])
        for field in schema
    ]
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))


def split_rows(table: pa.Table, item_types: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """The valid rows, and the invalid ones with a column `reason`. Duplicates are found later."""
    undecodable = _invalid_utf8(table)
    if pc.any(undecodable).as_py():
        table = _blank_strings(table, undecodable)
    known = pc.is_in(table["item_type"], value_set=pa.array(item_types, pa.string()))
    reasons = pc.case_when(
        pc.make_struct(
            undecodable,
            _is_blank(table["item_id"]),
            _is_blank(table["item_type"]),
            _is_blank(table["title"]),
            pc.invert(known),
        ),
        "a string is not valid UTF-8",
        "item_id is null or blank",
        "item_type is null or blank",
        "title is null or blank",
        pc.binary_join_element_wise("item_type '", table["item_type"], "' is in no collection", ""),
        pa.scalar(None, pa.string()),
    )
    is_good = pc.is_null(reasons)
    bad = table.append_column("reason", reasons).filter(pc.invert(is_good))
    return table.filter(is_good), bad


def _is_blank(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)


def _invalid_utf8(table: pa.Table) -> pa.Array:
    """bool (num_rows,). Arrow checks a column fast but names no row, so rows are checked only in an invalid column."""
    bad = pa.repeat(False, table.num_rows)
    for column in table.columns:
        if not _is_valid(column):
            bad = pc.or_(bad, pa.array([not _decodes(value) for value in column]))
    return bad


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decodes(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def _blank_strings(table: pa.Table, rows: pa.Array) -> pa.Table:
    """`table` with nulls in the marked rows of columns with invalid UTF-8, which Arrow and Parquet readers refuse."""
    columns = [
        column if _is_valid(column) else pc.if_else(rows, pa.scalar(None, column.type), column)
        for column in table.columns
    ]
    return pa.table(columns, schema=table.schema)
