"""Files of rows as other people may write them: any Arrow type, odd values, odd names, odd layouts."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from support.arrow_columns import NUM_ROWS, columns

Strategy = st.SearchStrategy
TEXTS = [
    *("a", "b", "c", "a b", "A", "1", "01", "1.0", "null", "NaN", "None", "true", "é", "e\u0301", "日本語", "🎵" * 3),
    *("../up", "a/b", "=1+1", "a\nb", "a\r", "\x1b[31mred", "a\0b", "\u202eabc", "'", '"', "{title}", "%s", ";", "\t"),
    *("", " ", "\u3000", "x" * 1024, "x" * 1025, "ü" * 513),
]
NAMES = [
    *("year", "Title", "TITLE ", "", " ", "a.b", "a b", "ä", "日本", "*", "a\nb", "a\0", "x" * 300, "index", "-"),
    *("vector", "text", "reason", "source_row", "fingerprint", "collection", "nightcrate:row", "__index_level_0__"),
]
CONTRACT_COLUMNS = ["creators", "parent_title", "description", "genres", "language", "popularity"]
FILE_NAMES = ["a.parquet", "b.parquet", "sub/c.parquet", "part-00000.snappy.parquet", "ü d.parquet", "x.y=1.parquet"]
KINDS = ["string", "large_string", "string_view", "dictionary", "binary", "large_binary", "binary_view"]
NUMBERS = [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.float64(), pa.decimal128(9, 2)]


@dataclass(frozen=True)
class Written:
    """A file, and how many rows it has."""

    name: str
    data: bytes
    num_rows: int

    def write(self, folder: Path) -> None:
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)


def mostly(usual: Strategy[Any], odd: Strategy[Any]) -> Strategy[Any]:
    """`odd` in one case of four, at the most: small numbers are drawn more often."""
    return st.integers(0, 3).flatmap(lambda number: odd if number == 3 else usual)


def three(values: Strategy[Any]) -> Strategy[list[Any]]:
    """One for each row."""
    return st.lists(values, min_size=NUM_ROWS, max_size=NUM_ROWS)


def stored_as(kind: str, values: list[str | None]) -> pa.Array:
    """Texts in one of the ways in which Arrow holds them."""
    if kind == "dictionary":
        return pa.array(values, pa.string()).dictionary_encode()
    if "binary" in kind:
        return pa.array([None if value is None else value.encode() for value in values], pa.type_for_alias(kind))
    return pa.array(values, pa.type_for_alias(kind))


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
texts: Strategy[pa.Array] = st.builds(
    stored_as, st.sampled_from(KINDS), three(st.none() | st.sampled_from(TEXTS) | any_text)
)
whole_numbers: Strategy[pa.Array] = st.builds(pa.array, three(st.none() | st.integers(0, 99)), st.sampled_from(NUMBERS))
ids: Strategy[pa.Array] = st.one_of(three(st.sampled_from("abcdefgh")).map(pa.array), texts, whole_numbers)
item_types: Strategy[pa.Array] = st.builds(
    stored_as, st.sampled_from(KINDS), three(mostly(st.just("track"), st.sampled_from(["show", "film", " ", None])))
)


@st.composite
def tables(draw: st.DrawFn, **required: Strategy[pa.Array]) -> dict[str, pa.Array]:
    """Columns of three rows: those of a catalogue, and `required` ones."""
    found: dict[str, pa.Array] = {
        "item_id": draw(mostly(ids, mostly(ids, columns()))),
        "item_type": draw(item_types),
        "title": draw(mostly(texts, mostly(whole_numbers, columns()))),
    }
    for name in draw(st.lists(st.sampled_from(CONTRACT_COLUMNS), unique=True, max_size=2)):
        found[name] = draw(mostly(st.one_of(texts, whole_numbers), columns()))
    for name in draw(mostly(st.just([]), st.lists(st.sampled_from(NAMES), unique=True, max_size=2))):
        found[name] = draw(st.one_of(columns(), texts, whole_numbers))
    found["more"] = draw(columns())
    if draw(mostly(st.just(False), mostly(st.just(False), st.booleans()))):
        del found[draw(st.sampled_from(["item_type", "title"]))]
    return found | {name: draw(strategy) for name, strategy in required.items()}


LAYOUTS: Strategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, NUM_ROWS),
        "compression": st.sampled_from(["zstd", "snappy", "gzip", "lz4", "none"]),
        "use_dictionary": st.booleans(),
        "version": st.sampled_from(["1.0", "2.4", "2.6"]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_statistics": st.booleans(),
        "store_schema": mostly(st.just(True), st.just(False)),
    }
)


def parquet(name: str, found: dict[str, pa.Array], layout: dict[str, Any], twice: str | None = None) -> Written:
    """The file, without the columns that Parquet has no type for; `twice` is a column that it has two times."""
    fitting = {column: values for column, values in found.items() if fits(values, layout)}
    names = [*fitting, *([twice] if twice in fitting else [])]
    table, file = pa.table([fitting[column] for column in names], names=names), io.BytesIO()
    pq.write_table(table, file, **layout)
    return Written(name, file.getvalue(), table.num_rows)


def fits(values: pa.Array, layout: dict[str, Any]) -> bool:
    """Whether Arrow can write the column, and does write all of it."""
    file = io.BytesIO()
    try:
        pq.write_table(pa.table([values], names=["column"]), file, **layout)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return bool(pq.read_metadata(file).num_rows == len(values))


@st.composite
def parquet_files(draw: st.DrawFn, **required: Strategy[pa.Array]) -> list[Written]:
    """One to three files."""
    names = draw(st.lists(st.sampled_from(FILE_NAMES), unique=True, min_size=1, max_size=3))
    twice = st.sampled_from([None] * 15 + ["title"])
    return [parquet(name, draw(tables(**required)), draw(LAYOUTS), draw(twice)) for name in names]


# --- precomputed vectors ---

DIM = 4
FLOATS = [0.0, -0.0, 1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), -float("inf")]
small_floats = st.floats(-2, 2, width=16)
good_vectors = st.lists(small_floats, min_size=DIM, max_size=DIM)
odd_vectors = st.one_of(
    st.none(),
    st.lists(small_floats, max_size=6),
    st.just([None] * DIM),
    st.lists(mostly(small_floats, st.sampled_from(FLOATS)), min_size=DIM, max_size=DIM),
)
VECTOR_TYPES = [
    *(pa.list_(pa.float64()), pa.list_(pa.float16()), pa.large_list(pa.float32()), pa.list_view(pa.float32())),
    *(pa.list_(pa.float32(), DIM), pa.list_(pa.float16(), DIM), pa.list_(pa.int32()), pa.list_(pa.decimal128(20, 5))),
]


@st.composite
def vectors(draw: st.DrawFn) -> pa.Array:
    """Three vectors; in some files not all are good ones, or of one type with those of the other files."""
    values = draw(three(draw(mostly(st.just(good_vectors), st.just(mostly(good_vectors, odd_vectors))))))
    kind = draw(mostly(st.just(pa.list_(pa.float32())), st.sampled_from(VECTOR_TYPES)))
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return pa.array(values, pa.list_(pa.float32()))


@st.composite
def npy(draw: st.DrawFn, num_rows: int) -> bytes:
    """Mostly whole, and of `num_rows` rows."""
    rows = draw(mostly(st.just(num_rows), st.integers(0, 9)))
    kind = draw(mostly(st.just("<f4"), st.sampled_from(["<f2", "<f8", ">f4", "<i4", "|u1"])))
    values = [
        draw(mostly(good_vectors, st.lists(st.sampled_from(FLOATS), min_size=DIM, max_size=DIM))) for _ in range(rows)
    ]
    file = io.BytesIO()
    with np.errstate(all="ignore"):
        np.save(file, np.array(values, np.float64).reshape(rows, DIM).astype(kind))
    data = file.getvalue()
    return data[: draw(mostly(st.just(len(data)), st.integers(0, len(data))))]


# --- CSV and JSON lines ---

CELLS = ["a", "b", "c", "track", "x,y", 'say "hi"', "two\nlines", "", " ", "1", "é", "NULL", "a;b", "\x1b[1m"]


@st.composite
def csv_files(draw: st.DrawFn) -> list[Written]:
    """Rows of texts, in between some of another number of fields."""
    names = ["item_id", "item_type", "title"]
    names += draw(st.lists(st.sampled_from(CONTRACT_COLUMNS), unique=True, max_size=2))
    rows = draw(st.lists(st.lists(st.sampled_from(CELLS), min_size=len(names), max_size=len(names)), max_size=5))
    file, delimiter, end = io.StringIO(), draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n"]))
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    writer.writerow(names)
    for row in rows:
        row[1] = "track"
        writer.writerow(row[: draw(mostly(st.just(len(row)), st.integers(2, len(row))))])
    return [Written("rows.csv", file.getvalue().encode(), len(rows))]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
JUNK = [b"{", b"null", b"[1]", b"3", b'"a"', b"\xff", b'{"item_id": "\\ud800"}', b"{}" * 2, b"nan", b'{"a": ' * 2000]


@st.composite
def json_files(draw: st.DrawFn) -> list[Written]:
    """One object a line, in between some lines that are none."""
    lines = []
    for _ in range(draw(st.integers(1, 5))):
        row = {"item_id": draw(st.sampled_from(TEXTS)), "item_type": "track", "title": draw(st.sampled_from(TEXTS))}
        for name in draw(st.lists(st.sampled_from([*CONTRACT_COLUMNS, *NAMES]), unique=True, max_size=2)):
            row[name] = draw(json_values)
        lines.append(draw(mostly(st.just(json.dumps(row).encode()), st.sampled_from(JUNK))))
    return [Written("rows.jsonl", b"\n".join(lines), len(lines))]


# --- search logs and BEIR ---

OTHER_NUMBERS = st.sampled_from(
    [0.0, -1.0, 1.5, 1.7e9, 1.7e12, 1.7e15, 1.7e18, 1e300, float("nan"), float("inf"), None]
)
floats: Strategy[pa.Array] = st.builds(pa.array, three(OTHER_NUMBERS), st.sampled_from([pa.float32(), pa.float64()]))


@st.composite
def log_files(draw: st.DrawFn) -> list[Written]:
    """One or two files of searches and clicks."""
    files = []
    for name in draw(st.sampled_from([["a.parquet"], ["a.parquet", "b.parquet"]])):
        found = {
            name: draw(mostly(texts, mostly(whole_numbers, columns()))) for name in ("query", "item_id", "query_group")
        }
        for column in draw(st.lists(st.sampled_from(["weight", "timestamp", "position"]), unique=True)):
            found[column] = draw(mostly(whole_numbers | floats, columns()))
        for column in draw(st.lists(st.sampled_from(["session_id", "user_id", "query_kind", "more"]), unique=True)):
            found[column] = draw(mostly(texts, columns()))
        files.append(parquet(name, found, draw(LAYOUTS)))
    return files


IDS = st.sampled_from(["1", "2", "d", "é", "a b"])


@st.composite
def beir_folders(draw: st.DrawFn) -> dict[str, bytes]:
    """Name → content; now and then an id is a number, missing, or there twice, or a line is none."""

    def lines(count: int) -> bytes:
        found = []
        for _ in range(draw(st.integers(1, count))):
            entry = {"_id": draw(mostly(IDS, json_values)), "text": draw(mostly(st.sampled_from(TEXTS), json_values))}
            if draw(st.booleans()):
                entry["title"] = draw(mostly(st.sampled_from(TEXTS), json_values))
            found.append(
                draw(mostly(st.just(json.dumps(entry).encode()), mostly(st.just(b" "), st.sampled_from(JUNK))))
            )
        return b"\n".join(found)

    judged = [["query-id", "corpus-id", "score"]]
    for _ in range(draw(st.integers(0, 4))):
        judged.append(
            [draw(IDS), draw(IDS), draw(mostly(st.just("1"), st.sampled_from(["0", "-1", "x", "nan", "inf", ""])))]
        )
    qrels = "\n".join("\t".join(row) for row in judged).encode()
    return {"corpus.jsonl": lines(4), "queries.jsonl": lines(2), "qrels/test.tsv": qrels}
