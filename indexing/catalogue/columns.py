"""Any Arrow column as the type that a contract requires: the one place that defines what a text, list or number is.

A text is a string, bytes or an integer. A list is a list of texts, or one text. A number is any number, or a text that
holds one; NaN means missing. How values are stored (dictionary, view, run-end, extension type) makes no difference.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without dictionaries, views, run ends and extension types, inside lists too."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type), keys_sorted=kind.keys_sorted)
    if not is_list(kind):
        return kind
    values = kind.value_field.with_type(plain_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(values, kind.list_size)
    is_large = pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind)
    return pa.large_list(values) if is_large else pa.list_(values)


def plain(array: pa.Array) -> pa.Array:
    """The same values as `plain_type`. Raises ArrowNotImplementedError for a nesting that Arrow cannot rewrite."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage)
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if pa.types.is_dictionary(kind):
        return plain(array.dictionary).take(array.indices)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):  # Arrow's own cast breaks at a null list
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        offsets = pa.concat_arrays([pa.array([0], lengths.type), pc.cumulative_sum(lengths)])
        make = pa.LargeListArray if pa.types.is_large_list_view(kind) else pa.ListArray
        return plain(make.from_arrays(offsets, pc.list_flatten(array), mask=pc.is_null(array)))
    return array.cast(plain_type(kind))


def carried_type(kind: pa.DataType) -> pa.DataType:
    """The type under which a column beyond the contract is kept: its own, unless Arrow cannot pick rows of it."""
    try:
        pa.nulls(1, kind).take(pa.array([0]))
    except pa.ArrowNotImplementedError:
        return plain_type(kind)
    return kind


def merged_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds the values of both; None where there is none, as for numbers and texts."""
    if one == other:
        return one
    plain_types = [plain_type(kind) for kind in (one, other)]
    wide_types = [pa.float64() if pa.types.is_float16(kind) else kind for kind in plain_types]
    for kinds, promote in (([one, other], "default"), (plain_types, "permissive"), (wide_types, "permissive")):
        try:
            merged = _unify(kinds, promote)
            for kind in (one, other):
                _widen(pa.nulls(1, kind), merged)  # Arrow names types that it cannot cast to
        except (pa.ArrowTypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
        return merged
    return None


def _unify(kinds: list[pa.DataType], promote: str) -> pa.DataType:
    schemas = [pa.schema([("column", kind)]) for kind in kinds]
    return pa.unify_schemas(schemas, promote_options=promote).field(0).type


def is_list(kind: pa.DataType) -> bool:
    tests = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def is_number(kind: pa.DataType) -> bool:
    """Whether all its values are numbers; booleans are not."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether its values are strings, or bytes that may be one."""
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


def converts(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column of type `actual` can be read as a contract's `expected`: a string, a list of strings, a number.

    Single values may still not fit; `convert` says which.
    """
    actual = plain_type(actual)
    if pa.types.is_null(actual):
        return True
    if pa.types.is_list(expected) and is_list(actual):
        return converts(actual.value_type, expected.value_type)
    if pa.types.is_string(expected) or pa.types.is_list(expected):
        return is_text(actual) or bool(pa.types.is_integer(actual))
    return is_text(actual) or is_number(actual)


def convert(column: pa.ChunkedArray, expected: pa.DataType) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """(`column` as `expected`, null where a value does not fit; bool (num_rows,): where one did not).

    `expected` is a contract's type that `converts` allows for the column.
    """
    return _by_chunk(_convert, column, expected)


def widen(column: pa.ChunkedArray, expected: pa.DataType) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The same for a column beyond the contract, whose values stay as they are, NaN too.

    `expected` is what `carried_type` and `merged_type` made of the column's type.
    """
    return _by_chunk(_widen, column, expected)


def _by_chunk(
    change: Callable[[pa.Array, pa.DataType], tuple[pa.Array, pa.Array]], column: pa.ChunkedArray, expected: pa.DataType
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    pairs = [change(chunk, expected) for chunk in column.chunks]
    values, unfit = ([pair[number] for pair in pairs] for number in (0, 1))
    return pa.chunked_array(values, expected), pa.chunked_array(unfit, pa.bool_())


def _convert(array: pa.Array, expected: pa.DataType) -> tuple[pa.Array, pa.Array]:
    if is_number(expected):
        return _as_number(array, expected)
    if pa.types.is_list(expected) and not is_list(plain_type(array.type)):
        texts, unfit = _convert(array, expected.value_type)
        return _each_in_a_list(texts), unfit
    return _widen(array, expected)


def _widen(array: pa.Array, expected: pa.DataType) -> tuple[pa.Array, pa.Array]:
    if array.type == expected:
        return without_undecodable(array)
    array, unfit = _cast(plain(array), expected)
    array, undecodable = without_undecodable(array)
    return array, pc.or_(unfit, undecodable)


def _as_number(array: pa.Array, expected: pa.DataType) -> tuple[pa.Array, pa.Array]:
    array = plain(array)
    undecodable = pa.repeat(False, len(array))
    if is_text(array.type):
        array, undecodable = _convert(array, pa.string())
        array = pc.utf8_trim_whitespace(array)
        array = pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    numbers, unfit = _cast(_without_nan(array), expected)
    return _without_nan(numbers), pc.or_(unfit, undecodable)


def _without_nan(array: pa.Array) -> pa.Array:
    if not pa.types.is_floating(array.type):
        return array
    return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)


def _each_in_a_list(texts: pa.Array) -> pa.Array:
    """list<string> (num_rows,) of one text each, null where that is null or blank."""
    is_missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
    offsets = pa.array(range(len(texts) + 1), pa.int32())
    return pa.ListArray.from_arrays(offsets, texts, mask=is_missing)


def _cast(array: pa.Array, expected: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """(the array cast, null where a value does not fit; where one did not). Rounding a float is no misfit."""
    options = pc.CastOptions(
        expected, allow_float_truncate=bool(pa.types.is_floating(expected)), allow_invalid_utf8=True
    )
    try:
        return array.cast(options=options), pa.repeat(False, len(array))
    except pa.ArrowInvalid:  # Arrow names no row
        if len(array) == 1:
            return pa.nulls(1, expected), pa.array([True])
        middle = len(array) // 2
        halves = [_cast(part, expected) for part in (array.slice(0, middle), array.slice(middle))]
        values, unfit = zip(*halves, strict=True)
        return pa.concat_arrays(values), pa.concat_arrays(unfit)


def without_undecodable(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(null in place of values with a string that is not UTF-8, which Arrow's kernels refuse; where they were)."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:  # fast, but names no row
        bad = pa.array([not _decodes(value) for value in array])
        return pc.if_else(bad, pa.scalar(None, array.type), array), bad
    return array, pa.repeat(False, len(array))


def _decodes(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    except (ArithmeticError, ValueError):  # a year that Python has no date for is not a wrong text
        return True
    return True


def as_text(array: pa.Array) -> pa.Array:
    """string (num_rows,): each value as text; null for a null, for NaN, and for bytes that are not UTF-8.

    Raises ArrowNotImplementedError for a type that cannot be text, such as a struct.
    """
    return _convert(_without_nan(plain(array)), pa.string())[0]


def split_texts(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """list<string> (num_rows,): the parts of each text between separators. What is not UTF-8 stays for `convert`."""
    lists = [pc.split_pattern(_cast(plain(texts), pa.string())[0], separator) for texts in column.chunks]
    parts = [_drop_blanks(parts, pc.ascii_trim_whitespace(pc.list_flatten(parts))) for parts in lists]
    return pa.chunked_array(parts, pa.list_(pa.string()))


def without_blanks(lists: pa.Array) -> pa.Array:
    """list<string> (num_rows,) of what each list holds, as trimmed texts, without blank ones and nulls."""
    return _drop_blanks(lists, pc.utf8_trim_whitespace(as_text(pc.list_flatten(lists))))


def _drop_blanks(lists: pa.Array, texts: pa.Array) -> pa.Array:
    """`texts`: of all lists, one after the other."""
    present = pc.fill_null(pc.not_equal(texts, ""), False)
    counts = np.bincount(pc.list_parent_indices(lists).filter(present).to_numpy(), minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, texts.filter(present), mask=pc.is_null(lists))
