"""Columns of any Arrow type, with any bytes that it may hold."""

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

NUM_ROWS = 3
UNITS = ["s", "ms", "us", "ns"]


def raw(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Any bytes that a fixed-width column of this type may hold: no check has seen them."""
    width = kind.bit_width // 8

    def make(data: bytes) -> pa.Array:
        return pa.Array.from_buffers(kind, NUM_ROWS, [None, pa.py_buffer(data)])

    return st.binary(min_size=width * NUM_ROWS, max_size=width * NUM_ROWS).map(make)


FIXED: list[pa.DataType] = [
    *(pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.date64()),
    *(pa.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Europe/Berlin", "+05:30", "Mars/Phobos")),
    *(pa.duration(unit) for unit in UNITS),
    *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
    *(pa.month_day_nano_interval(), pa.binary(5), pa.decimal128(38, 3), pa.decimal256(76, -5)),
]


def any_text(kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
    """Bytes that need not be UTF-8, in a text column."""
    texts = st.lists(st.none() | st.binary(max_size=20), min_size=NUM_ROWS, max_size=NUM_ROWS)
    if kind in (pa.string_view(), pa.binary_view()):
        return texts.map(lambda values: pa.array(values, pa.binary_view()).view(kind))
    large = kind in (pa.large_string(), pa.large_binary())
    return texts.map(lambda values: pa.array(values, pa.large_binary() if large else pa.binary()).view(kind))


leaves = st.one_of(
    st.sampled_from(FIXED).flatmap(raw),
    st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]).flatmap(
        any_text
    ),
    st.just(pa.nulls(NUM_ROWS)),
    st.just(pa.array([True, None, False])),
    st.just(pa.array([{"x": 1}, None, {"x": None}])),
)
offsets = st.lists(st.integers(0, NUM_ROWS), min_size=NUM_ROWS + 1, max_size=NUM_ROWS + 1).map(sorted)


def in_list(values: pa.Array, ends: list[int]) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def in_large_list(values: pa.Array, ends: list[int]) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), values)


def in_list_view(values: pa.Array, ends: list[int]) -> pa.Array:
    sizes = np.diff(ends)
    return pa.ListViewArray.from_arrays(pa.array(ends[:-1], pa.int32()), pa.array(sizes, pa.int32()), values)


def in_fixed_list(values: pa.Array, ends: list[int]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(values, 1)


def in_map(values: pa.Array, ends: list[int]) -> pa.Array:
    keys = pa.array([f"k{i}" for i in range(NUM_ROWS)])
    return pa.MapArray.from_arrays(pa.array(ends, pa.int32()), keys, values)


def in_struct(values: pa.Array, ends: list[int]) -> pa.Array:
    """With a repeated name."""
    return pa.StructArray.from_arrays([values, values, pa.array(ends[:-1])], names=["a", "a", "b"])


def in_dictionary(values: pa.Array, ends: list[int]) -> pa.Array:
    indices = pa.array([2, None, 0], pa.int8())
    return pa.DictionaryArray.from_arrays(indices, values)


def in_runs(values: pa.Array, ends: list[int]) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), values)


def in_union(values: pa.Array, ends: list[int]) -> pa.Array:
    types = pa.array([0, 1, 0], pa.int8())
    return pa.UnionArray.from_sparse(types, [values, pa.array(ends[:-1])])


class Wrapped(pa.ExtensionType):  # type: ignore[misc]
    """A type that nobody has registered."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "nightcrate.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, data: bytes) -> "Wrapped":
        return cls(storage)


def in_extension(values: pa.Array, ends: list[int]) -> pa.Array:
    """Not of an extension: Arrow 26 aborts the process where run ends are then put around it, which Parquet has not."""
    if isinstance(values.type, pa.BaseExtensionType):
        raise TypeError("an extension of an extension")
    return pa.ExtensionArray.from_storage(Wrapped(values.type), values)


ENCODINGS = [in_dictionary, in_runs]
NESTINGS = [in_list, in_large_list, in_list_view, in_fixed_list, in_map, in_struct, in_union, in_extension]


@st.composite
def columns(draw: st.DrawFn) -> pa.Array:
    """Three values of any type, up to three levels deep.

    At most one level is encoded: Arrow 26 aborts the process for a value of dictionary<run_end_encoded<dictionary>>,
    which no Parquet file gives.
    """
    values = draw(leaves)
    levels = draw(st.lists(st.sampled_from(NESTINGS), max_size=3))
    for encode in draw(st.lists(st.sampled_from(ENCODINGS), max_size=1)):
        levels.insert(draw(st.integers(0, len(levels))), encode)
    for nest in levels:
        try:
            values = nest(values, draw(offsets))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, TypeError):
            continue  # Arrow itself has no such nesting
    return values
