"""Values of a row for people and JSON: whatever Arrow can hold, a hit can show."""

from typing import Any

import pyarrow as pa

UNREPRESENTABLE = (ArithmeticError, ValueError, TypeError, KeyError, NotImplementedError, pa.ArrowException)
"""What pyarrow raises for a value that Python has no type for: a year 300,000, text that is not UTF-8."""


def row_values(table: pa.Table, row: int) -> dict[str, Any]:
    """The row's values by column; of columns with the same name, the last one."""
    return {name: plain_value(column[row]) for name, column in zip(table.column_names, table.columns, strict=True)}


def plain_value(scalar: pa.Scalar) -> Any:
    """`scalar.as_py()` where that works, else the same with text for each value that Python cannot represent."""
    try:
        return scalar.as_py()
    except UNREPRESENTABLE:
        return _by_parts(scalar)


def _by_parts(scalar: pa.Scalar) -> Any:
    kind = scalar.type
    if pa.types.is_struct(kind):
        return {field.name: plain_value(scalar[number]) for number, field in enumerate(kind)}
    if pa.types.is_map(kind):
        pairs = scalar.values
        return [(plain_value(pair[0]), plain_value(pair[1])) for pair in pairs]
    if isinstance(scalar, pa.ListScalar):
        return [plain_value(item) for item in scalar.values]
    if isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar | pa.RunEndEncodedScalar | pa.UnionScalar):
        return plain_value(scalar.value)
    return _text(scalar)


def _text(scalar: pa.Scalar) -> str:
    if isinstance(scalar, pa.StringScalar):
        return str(scalar.as_buffer(), "utf-8", "replace")
    try:
        return str(scalar.cast(pa.string()).as_py())
    except UNREPRESENTABLE:
        return str(getattr(scalar, "value", scalar.type))
