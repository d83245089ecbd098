"""The catalogue contract: which columns and rows are accepted, how an item reads as text, and its fingerprint."""

import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexing.catalogue import columns as columns_module
from indexing.catalogue.columns import convert, merged_type
from indexing.catalogue.contract import (
    CONTRACT,
    FINGERPRINT_TYPE,
    REQUIRED,
    STRINGS,
    conform_schema,
    conform_table,
    require_names,
    split_rows,
)
from indexing.catalogue.text import parse_templates, render_texts, row_fingerprints
from indexing.errors import ConfigError, DataError

GOOD = {"item_id": "t1", "item_type": "track", "title": "So What", "creators": ["Miles Davis"], "popularity": 0.5}
NOT_UTF8 = b"caf\xe9"
STRING_TYPES = (pa.string(), pa.large_string())


def conformed(table: pa.Table) -> pa.Table:
    return conform_table(table, conform_schema(table.schema, "a.parquet"))


def split(*rows: dict[str, object], **columns: pa.Array) -> tuple[pa.Table, pa.Table]:
    """GOOD with the rows replaced, then whole columns replaced, split into good and bad."""
    table = pa.Table.from_pylist([{**GOOD, **row} for row in rows], schema=CONTRACT)
    for name, column in columns.items():
        position = table.schema.get_field_index(name)
        table = table.append_column(name, column) if position < 0 else table.set_column(position, name, column)
    return split_rows(conformed(table), ["track", "show"])


def strings_of_bytes(values: list[bytes], is_large: bool = False) -> pa.Array:
    """A string column that may hold bytes that are not UTF-8, as careless writers make them."""
    return pa.array(values, pa.large_binary() if is_large else pa.binary()).view(STRING_TYPES[is_large])


# --- columns ---


@pytest.mark.parametrize("name", ["item_id", "item_type", "title"])
def test_a_required_column_that_is_missing_is_named_with_its_file(name: str) -> None:
    names = [other for other in CONTRACT.names if other != name]
    with pytest.raises(DataError, match=rf"^a\.parquet: expected columns .*; {name} not found"):
        require_names(names, REQUIRED, "a.parquet")


@pytest.mark.parametrize(
    ("name", "actual"),
    [
        ("item_id", pa.float64()),
        ("title", pa.timestamp("s")),
        ("creators", pa.bool_()),
        ("creators", pa.list_(pa.float32())),
        ("genres", pa.struct([("name", pa.string())])),
        ("genres", pa.list_(pa.struct([("name", pa.string())]))),
        ("popularity", pa.bool_()),
        ("popularity", pa.list_(pa.float32())),
        ("language", pa.bool_()),
        ("title", pa.dictionary(pa.int32(), pa.float64())),
    ],
)
def test_a_column_of_a_wrong_type_is_named_with_both_types(name: str, actual: pa.DataType) -> None:
    table = pa.table({field.name: pa.nulls(1, actual if field.name == name else field.type) for field in CONTRACT})
    expected = re.escape(f"a.parquet: expected column {name} as {CONTRACT.field(name).type}, got {actual}")
    with pytest.raises(DataError, match=expected):
        conformed(table)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("title", pa.array(["So What"], pa.large_string())),
        ("title", pa.array(["So What"], pa.string_view())),
        ("title", pa.array(["So What"]).dictionary_encode()),
        ("title", pa.array(["So What"], pa.large_string()).dictionary_encode()),
        ("creators", pa.array([["Miles Davis"]], pa.large_list(pa.string()))),
        ("creators", pa.array([["Miles Davis"]], pa.list_(pa.large_string()))),
        ("creators", pa.array([["Miles Davis"]], pa.list_(pa.string_view()))),
        ("popularity", pa.array([0.5], pa.float64())),
        ("popularity", pa.array([3], pa.int16())),
        ("description", pa.nulls(1)),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.type),
)
def test_what_other_tools_write_for_a_string_a_list_or_a_number_is_read(name: str, column: pa.Array) -> None:
    good, bad = split({}, **{name: column})
    assert (good.num_rows, bad.num_rows) == (1, 0)
    assert good[name].type == CONTRACT.field(name).type
    assert good[name].to_pylist() == column.to_pylist()


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("item_id", pa.array([17, 2**53 + 1]), ["17", "9007199254740993"]),
        ("title", pa.array([1979, 2112]).dictionary_encode(), ["1979", "2112"]),
        ("title", pa.array([b"So What", b"Solar"]), ["So What", "Solar"]),
        ("title", pa.array([b"So What", b"Solar"], pa.binary_view()), ["So What", "Solar"]),
        ("title", pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2"])), ["1", "2"]),
        ("creators", pa.array(["Miles Davis", " "]), [["Miles Davis"], None]),
        ("creators", pa.array([[7], None], pa.list_view(pa.int8())), [["7"], None]),
        ("creators", pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), [["a", "b"], None]),
        ("popularity", pa.array([Decimal("1.5"), None]), [1.5, None]),
        ("popularity", pa.array([" 2 ", ""]), [2, None]),
        ("popularity", pa.array([float("nan"), 3], pa.float64()), [None, 3]),
        ("popularity", pa.array([float("nan"), 3], pa.float16()), [None, 3]),
    ],
    ids=lambda value: value if isinstance(value, str) else str(getattr(value, "type", "")),
)
def test_whole_numbers_and_bytes_are_texts_one_text_is_a_list_and_every_number_is_a_number(
    name: str, column: pa.Array, expected: list[object]
) -> None:
    good, bad = split({}, {"item_id": "t2"}, **{name: column})
    assert bad.num_rows == 0
    assert good[name].to_pylist() == expected
    assert good[name].type == CONTRACT.field(name).type


def test_a_repeated_column_is_named() -> None:
    schema = pa.schema([*CONTRACT, ("year", pa.int32()), ("year", pa.string())])
    with pytest.raises(DataError, match=r"^a\.parquet: expected each column once, got 'year' twice$"):
        conform_schema(schema, "a.parquet")


@pytest.mark.parametrize(
    ("column", "kept"),
    [
        (pa.array(["a", None], pa.string_view()), pa.string()),
        (pa.array([b"a", None], pa.binary_view()), pa.binary()),
        (pa.array([["a"], None], pa.list_(pa.string_view())), pa.list_(pa.string())),
        (pa.array([{"x": "a"}, None], pa.struct([("x", pa.string_view())])), pa.struct([("x", pa.string())])),
        (pa.array(["a", None]).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
        (pa.array([[1.0], None], pa.list_view(pa.float32())), pa.list_view(pa.float32())),
        (pa.array([float("nan"), None]), pa.float64()),
        (pa.array([None, None]), pa.null()),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_column_beyond_the_contract_keeps_its_values_and_where_rows_can_be_picked_of_it_its_type(
    column: pa.Array, kept: pa.DataType
) -> None:
    good, _ = split({}, {"item_id": "t2"}, extra=column)
    assert good["extra"].type == kept
    assert repr(good["extra"].to_pylist()) == repr(column.to_pylist())


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.string()),
        (pa.string(), pa.string_view(), pa.string()),
        (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us")),
        (pa.decimal128(5, 2), pa.float64(), pa.float64()),
        (pa.decimal128(5, 2), pa.float16(), pa.float64()),
        (pa.null(), pa.list_view(pa.string()), pa.list_(pa.string())),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.int64())),
        (pa.null(), pa.list_(pa.string()), pa.list_(pa.string())),
        (pa.int64(), pa.string(), None),
        (pa.timestamp("s"), pa.timestamp("s", "UTC"), None),
        (pa.bool_(), pa.int8(), None),
    ],
    ids=str,
)
def test_columns_of_two_writers_have_the_type_that_holds_the_values_of_both_or_none(
    one: pa.DataType, other: pa.DataType, both: pa.DataType | None
) -> None:
    assert merged_type(one, other) == merged_type(other, one) == both


def test_missing_optional_columns_are_null_and_columns_beyond_the_contract_are_carried_along() -> None:
    table = pa.table({"year": [1959], "title": ["So What"], "item_id": ["t1"], "item_type": ["track"]})
    good, _ = split_rows(conformed(table), ["track"])
    assert good.column_names == [*CONTRACT.names, "year"]
    assert good.to_pylist()[0] == dict.fromkeys(CONTRACT.names) | table.to_pylist()[0]


# --- rows ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"item_id": None}, "item_id is null or blank"),
        ({"item_id": ""}, "item_id is null or blank"),
        ({"item_id": " \t\n\u3000"}, "item_id is null or blank"),
        ({"item_id": "é" * 512 + "x"}, "item_id is longer than 1024 bytes"),
        ({"item_type": None}, "item_type is null or blank"),
        ({"item_type": " "}, "item_type is null or blank"),
        ({"title": None}, "title is null or blank"),
        ({"title": "\u2003"}, "title is null or blank"),
        ({"item_type": "film"}, "item_type 'film' is in no collection"),
        ({"item_type": "Track"}, "item_type 'Track' is in no collection"),
    ],
)
def test_an_invalid_row_is_set_aside_with_its_reason(change: dict[str, object], reason: str) -> None:
    good, bad = split({"item_id": "before"}, change, {"item_id": "behind"})
    assert good["item_id"].to_pylist() == ["before", "behind"]
    assert bad["reason"].to_pylist() == [reason]
    assert bad.drop_columns("reason").to_pylist() == pa.Table.from_pylist([{**GOOD, **change}], CONTRACT).to_pylist()


@pytest.mark.case(19)
@pytest.mark.parametrize("name", ["item_id", "title", "description", "extra"])
@pytest.mark.parametrize("is_large", [False, True], ids=["string", "large_string"])
def test_a_string_that_is_not_utf8_costs_only_its_row(name: str, is_large: bool) -> None:
    column = strings_of_bytes([b"track-a", NOT_UTF8, b"track-b"], is_large)
    good, bad = split({"item_id": "a"}, {"item_id": "b"}, {"item_id": "c"}, **{name: column})
    assert good[name].to_pylist() == ["track-a", "track-b"]
    assert bad["reason"].to_pylist() == ["a string is not valid UTF-8"]
    bad.validate(full=True)  # so that quarantine Parquet can be read
    bad.to_pylist()


@pytest.mark.case(19)
@pytest.mark.parametrize("name", ["creators", "extra"])
def test_a_list_with_a_string_that_is_not_utf8_costs_only_its_row(name: str) -> None:
    values = strings_of_bytes([b"a", NOT_UTF8, b"b"])
    column = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), values)
    good, bad = split({}, {}, {}, **{name: column})
    assert good[name].to_pylist() == [["a"], ["b"]]
    assert bad["reason"].to_pylist() == ["a string is not valid UTF-8"]
    bad.validate(full=True)


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array(["1", "many", "3"]), "popularity is not a number"),
        (pa.array([b"1", NOT_UTF8, b"3"]), "popularity is not a number"),
    ],
    ids=str,
)
def test_a_value_that_is_not_a_number_costs_only_its_row(column: pa.Array, reason: str) -> None:
    good, bad = split({}, {}, {}, popularity=column)
    assert good["popularity"].to_pylist() == [1, 3]
    assert bad["reason"].to_pylist() == [reason]


@pytest.mark.case(19)
def test_a_value_that_does_not_fit_the_wider_type_costs_only_its_row() -> None:
    table = pa.table(
        {**{name: [value] * 2 for name, value in GOOD.items()}, "at": pa.array([2**40, 1], pa.timestamp("s"))}
    )
    schema = conform_schema(table.schema, "a.parquet")
    schema = schema.set(len(CONTRACT), pa.field("at", pa.timestamp("ns")))
    good, bad = split_rows(conform_table(table, schema), ["track"])
    assert (good.num_rows, bad["reason"].to_pylist()) == (1, ["at does not fit timestamp[ns]"])


def test_no_rows_split_into_no_rows() -> None:
    good, bad = split_rows(conformed(CONTRACT.empty_table()), ["track"])
    assert (good.num_rows, bad.num_rows) == (0, 0)
    assert bad.column_names == [*CONTRACT.names, "reason"]


# --- text ---

VALUES = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8)
LISTS = st.lists(st.one_of(st.none(), st.just(" "), VALUES), max_size=4)
FIELDS = {"title": VALUES, "parent_title": VALUES, "description": VALUES, "creators": LISTS, "genres": LISTS}
ROWS = st.fixed_dictionaries(
    {
        name: st.one_of(st.none(), st.just(" \t") if values is VALUES else st.just([]), values)
        for name, values in FIELDS.items()
    }
)
SEPARATORS = st.sampled_from([" — ", " | ", ", ", "; ", " · "])


def render(template: str, *rows: dict[str, object]) -> list[str]:
    schema = pa.schema([*CONTRACT, ("year", pa.int32())])
    table = pa.Table.from_pylist([{**GOOD, "title": None, "creators": None, **row} for row in rows], schema=schema)
    return render_texts(table, parse_templates({"default": template}, schema.names, ["track"])).to_pylist()


def as_text(value: str | list[str | None] | None) -> str:
    if isinstance(value, list):
        return ", ".join(part for part in value if part and part.strip())
    return (value or "").strip()


@given(rows=st.lists(ROWS, min_size=1, max_size=5), separator=SEPARATORS, names=st.permutations(list(FIELDS)))
def test_missing_fields_leave_no_separator(rows: list[dict[str, object]], separator: str, names: list[str]) -> None:
    template = separator.join(f"{{{name}}}" for name in names)
    expected = [separator.join(filter(None, (as_text(row[name]) for name in names))) for row in rows]
    assert render(template, *rows) == expected


@given(row=ROWS, separators=st.lists(SEPARATORS, min_size=4, max_size=4))
def test_separators_never_lead_trail_or_meet(row: dict[str, object], separators: list[str]) -> None:
    template = "".join(f"{{{name}}}{mark}" for name, mark in zip(FIELDS, [*separators, ""], strict=True))
    row = {name: value[:1] if isinstance(value, list) else value for name, value in row.items()}  # no joined lists
    (text,) = render(template, row)
    assert text == text.strip(" —|,;·")
    assert not re.search(r"[—|,;·]\s*[—|,;·]", text)


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ("{title} {description}", {"title": "a", "description": "b"}, "a b"),
        ("{title} by {creators}", {"title": "a", "creators": ["b", "c"]}, "a by b, c"),
        ("{title} by {creators}", {"title": "a", "creators": []}, "a"),
        ("{title} by {creators}", {"title": "a", "creators": [None, " ", "b", ""]}, "a by b"),
        ("Title: {title}, from {parent_title}", {"parent_title": "b"}, "b"),
        ("“{title}”", {"title": "a"}, "“a”"),
        ("“{title}”", {}, ""),
        ("{title} ({year})", {"title": " a ", "year": 1959}, "a (1959)"),
        ("{title} ({year})", {"title": "a"}, "a"),
        ("{{{title}}}", {"title": "a"}, "{a}"),
    ],
)
def test_a_template_reads(template: str, row: dict[str, object], expected: str) -> None:
    assert render(template, row) == [expected]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1959]), "1959"),
        (pa.array([True]), "true"),
        (pa.array([["a", None, "b"]], pa.large_list(pa.large_string())), "a, b"),
        (pa.array([["a", "b"]], pa.list_(pa.string(), 2)), "a, b"),
        (pa.array([[3, 4]]), "3, 4"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array(["a"], pa.string_view()), "a"),
        (pa.array([["a", " "]], pa.list_(pa.string_view())), "a"),
        (pa.array([b"a"]), "a"),
        (pa.array([NOT_UTF8]), ""),
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([float("nan")]), ""),
        (pa.array([[1.5, float("nan")]]), "1.5"),
        (pa.nulls(1), ""),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_field_beyond_the_contract_reads_as_text_too(column: pa.Array, expected: str) -> None:
    good, _ = split({}, extra=column)
    templates = parse_templates({"default": "{extra}"}, good.column_names, ["track"])
    assert render_texts(good, templates).to_pylist() == [expected]


@pytest.mark.parametrize("column", [pa.array([{"a": 1}]), pa.array([[[1]]])], ids=lambda column: str(column.type))
def test_a_field_that_cannot_be_text_is_refused_by_name(column: pa.Array) -> None:
    good, _ = split({}, extra=column)
    with pytest.raises(ConfigError, match="field 'extra' cannot be rendered as text, its type is"):
        render_texts(good, parse_templates({"default": "{extra}"}, good.column_names, ["track"]))


@pytest.mark.parametrize(
    "column",
    [
        strings_of_bytes([b"a", NOT_UTF8, b"b"]).dictionary_encode(),
        pa.StructArray.from_arrays([strings_of_bytes([b"a", NOT_UTF8, b"b"])], ["name"]),
    ],
    ids=lambda column: str(column.type),
)
def test_invalid_utf8_inside_any_type_costs_only_its_row(column: pa.Array) -> None:
    good, bad = split({}, {}, {}, extra=column)
    assert (good.num_rows, bad["reason"].to_pylist()) == (2, ["a string is not valid UTF-8"])
    bad.validate(full=True)


def test_each_item_type_reads_by_its_own_template_and_the_rest_by_the_default() -> None:
    rows = [{**GOOD, "item_type": kind, "description": "d"} for kind in ("show", "track", "album", "track")]
    text = {"default": "{title}", "track": "{description}"}
    templates = parse_templates(text, CONTRACT.names, ["track", "show", "album"])
    assert render_texts(pa.Table.from_pylist(rows, CONTRACT), templates).to_pylist() == ["So What", "d", "So What", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"default": "{titel}"}, "catalogue.text.default: the catalogue has no field 'titel'; did you mean 'title'?"),
        (
            {"default": "{title}", "show": "{zzz}"},
            "catalogue.text.show: the catalogue has no field 'zzz'; fields are item_id,",
        ),
        (
            {"default": "{title}", "trak": "{title}"},
            "catalogue.text: 'trak' is not an item type of any collection; item types are show, track",
        ),
        ({"show": "{title}"}, "catalogue.text: no template for item type 'track' and no default"),
        ({"default": "no field"}, "catalogue.text.default: expected at least one {field}, got 'no field'"),
        ({"default": "{title"}, "catalogue.text.default: expected '}' before end of string in '{title'"),
        ({"default": "{}"}, "catalogue.text.default: the catalogue has no field ''"),
    ],
)
def test_a_template_that_cannot_work_is_refused_by_name(text: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_templates(text, CONTRACT.names, ["track", "show"])


# --- fingerprint ---


def test_fingerprints_differ_by_text_and_by_encoder_and_by_nothing_else() -> None:
    texts = pa.chunked_array([["a", "b"], ["a", "ab", ""]])
    one, other = row_fingerprints(texts, "one"), row_fingerprints(texts, "other")
    assert one.type == FINGERPRINT_TYPE
    assert one[0] == one[2]
    assert len(set(one.to_pylist()) | set(other.to_pylist())) == 8
    assert row_fingerprints(texts, "one") == one


def test_the_border_between_encoder_and_text_counts() -> None:
    def fingerprint_of(text: str, encoder: str) -> bytes:
        value: bytes = row_fingerprints(pa.chunked_array([[text]]), encoder)[0].as_py()
        return value

    assert fingerprint_of("bc", "a") != fingerprint_of("c", "ab")


def test_fingerprints_never_change() -> None:
    value = row_fingerprints(pa.chunked_array([["So What — Miles Davis"]]), "0" * 32)[0].as_py()
    assert value.hex() == "b72b917f3f6248ad831547ddd490f12f"


def test_list_columns_are_read_whatever_slice_they_are() -> None:
    table = pa.Table.from_pylist([{**GOOD, "creators": [str(number)]} for number in range(9)], schema=CONTRACT)
    templates = parse_templates({"default": "{creators}"}, CONTRACT.names, ["track"])
    assert render_texts(table.slice(3, 4), templates).to_pylist() == ["3", "4", "5", "6"]
    assert CONTRACT.field("creators").type == STRINGS
    assert np.all(np.array(render_texts(table, templates).to_pylist()) == np.arange(9).astype(str))


def test_one_misfit_does_not_cost_a_cast_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, cast = list[int](), columns_module._cast

    def counted(array: pa.Array, expected: pa.DataType) -> tuple[pa.Array, pa.Array]:
        lengths.append(len(array))
        return cast(array, expected)

    monkeypatch.setattr(columns_module, "_cast", counted)
    texts = pa.chunked_array([[*["1.5"] * 777, "many", *["2"] * 222]])
    values, unfit = convert(texts, pa.float32())
    assert np.flatnonzero(unfit).tolist() == [777] and values.null_count == 1
    assert values.drop_null().to_pylist() == [1.5] * 777 + [2] * 222
    assert len(lengths) < 30
