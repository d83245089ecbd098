"""One part of the catalogue, checked: good rows with what the stages need, bad rows with a reason. No Ray."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import scan

from indexing.errors import ConfigError, DataError
from indexing.id_keys import id_keys
from jobs.config.load import load_config
from jobs.config.schema import Config
from jobs.inputs.catalogue import Part, Source
from jobs.inputs.rows import BAD_ROWS, MAX_EXCERPT, add_keys, check_part, row_rules
from jobs.workspace.vectors import VECTOR, vectors_of

ENCODER = "0" * 32
TITLES = {"collections": {"tracks": {"item_types": ["track"]}}, "text": {"default": "{title}"}}
ROW = {"item_type": "track", "title": "So What"}


def make_config(folder: Path, **changes: Any) -> Config:
    content = {
        "name": "n",
        "store": f"file://{folder}/store",
        "workspace": f"file://{folder}/workspace",
        "catalogue": {
            "path": f"{folder}/catalogue",
            "collections": {"tracks": {"item_types": ["track"]}, "shows": {"item_types": ["show"]}},
            "text": {"default": "{title} — {description}", "show": "{description}"},
        },
    }
    (folder / "config.yaml").write_text(json.dumps(content | changes))
    return load_config(str(folder / "config.yaml"))


def check(config: Config, part: Part, source: Source, encoder: str | None) -> tuple[pa.Table, pa.Table]:
    rules = row_rules(config, source)
    good, bad = zip(*check_part(part, rules), strict=True)
    return add_keys(pa.concat_tables(good), rules, encoder), pa.concat_tables(bad)


def check_texts(folder: Path, rows: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    (folder / "catalogue").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "catalogue" / "a.parquet", row_group_size=2)
    config = make_config(folder)
    source = scan(config)
    return check(config, source.parts[0], source, ENCODER)


def test_good_rows_get_text_key_and_collection(tmp_path: Path) -> None:
    rows = [
        {"item_id": "1", **ROW, "description": "d"},
        {"item_id": "2", "item_type": "show", "title": "t", "description": "e"},
    ]
    good, bad = check_texts(tmp_path, rows)
    assert good["text"].to_pylist() == ["So What — d", "e"]
    assert good["collection"].to_pylist() == ["tracks", "shows"]
    assert good["id_key"].to_pylist() == id_keys(["1", "2"]).tolist()
    assert bad.num_rows == 0


@pytest.mark.case(19)
def test_bad_rows_name_reason_file_and_row(tmp_path: Path) -> None:
    rows = [
        {"item_id": "1", **ROW, "description": "d"},
        {"item_id": None, **ROW, "description": None},
        {"item_id": "3", "item_type": "show", "title": "t", "description": " "},
        {"item_id": "4", "item_type": "film", "title": "t", "description": "d"},
    ]
    good, bad = check_texts(tmp_path, rows)
    assert good["item_id"].to_pylist() == ["1"]
    assert bad.schema == BAD_ROWS
    assert bad["excerpt"].to_pylist()[-1] == "item_id: 3; item_type: show; title: t; description:  "
    found = [(row["source_row"], row["item_id"], row["reason"], row["source_file"]) for row in bad.to_pylist()]
    assert sorted(found) == [
        (1, None, "item_id is null or blank", "a.parquet"),
        (2, "3", "its text is empty", "a.parquet"),
        (3, "4", "item_type 'film' is in no collection", "a.parquet"),
    ]


@pytest.mark.case(19)
def test_a_part_may_be_bad_as_a_whole(tmp_path: Path) -> None:
    good, bad = check_texts(
        tmp_path, [{"item_id": str(number), "item_type": "track", "title": ""} for number in (1, 2)]
    )
    assert (good.num_rows, bad.num_rows) == (0, 2)
    assert {"id_key", "fingerprint", "collection", "text"} <= set(good.column_names)


@pytest.mark.case(19)
def test_an_excerpt_is_short_and_shows_what_came_whatever_it_was(tmp_path: Path) -> None:
    (tmp_path / "catalogue").mkdir()
    columns = {
        "item_id": ["1", "2"],
        "item_type": ["track"] * 2,
        "title": pa.array([b"caf\xe9 = 1", b""]).view(pa.string()),
        "plays": pa.array([2**40, 7], pa.timestamp("s")),
        "popularity": ["many", "x" * 10_000],
        "more": [{"a": [1]}, None],
    }
    pq.write_table(pa.table(columns), tmp_path / "catalogue" / "a.parquet")
    config = make_config(tmp_path)
    source = scan(config)
    _, bad = check(config, source.parts[0], source, ENCODER)
    first, second = bad["excerpt"].to_pylist()
    assert first.startswith("item_id: 1; item_type: track; title: caf\ufffd = 1; plays: ")
    assert first.endswith("; popularity: many; more: {'a': [1]}")
    assert len(second) == MAX_EXCERPT


# --- precomputed vectors ---


def write_vectors(folder: Path, vectors: pa.Array, **columns: list[Any]) -> Config:
    table = pa.table({"item_id": [f"{number}" for number in range(len(vectors))], VECTOR: vectors, **columns})
    pq.write_table(table, folder / "vectors.parquet")
    collections = {"collections": {"tracks": {"item_types": ["track"]}}}
    return make_config(folder, catalogue=collections, vectors={"path": f"{folder}/vectors.parquet"})


def check_vectors(config: Config) -> tuple[pa.Table, pa.Table]:
    source = scan(config)
    return check(config, source.parts[0], source, None)


def test_vectors_come_out_at_unit_norm_with_defaults_filled_in(tmp_path: Path) -> None:
    good, bad = check_vectors(write_vectors(tmp_path, pa.array([[3.0, 4.0], [0.0, -2.0]])))
    np.testing.assert_allclose(vectors_of(good), [[0.6, 0.8], [0, -1]])
    assert good["title"].to_pylist() == ["0", "1"]
    assert good["item_type"].to_pylist() == ["track", "track"]
    assert VECTOR not in good.drop_columns(VECTOR).column_names
    assert bad.num_rows == 0


def test_equal_vectors_have_equal_fingerprints(tmp_path: Path) -> None:
    good, _ = check_vectors(write_vectors(tmp_path, pa.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])))
    one, same, other = good["fingerprint"].to_pylist()
    assert one == same != other


@pytest.mark.case(19)
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), 1e38, None])
def test_vectors_that_cannot_be_normalised_are_set_aside(tmp_path: Path, value: float | None) -> None:
    vectors = pa.array([[1.0, 0.0], [value, value], [0.0, 1.0]], pa.list_(pa.float64()))
    good, bad = check_vectors(write_vectors(tmp_path, vectors))
    assert good["item_id"].to_pylist() == ["0", "2"]
    assert [(row["item_id"], row["reason"]) for row in bad.to_pylist()] == [("1", "its vector is zero or not finite")]


@pytest.mark.parametrize(
    "type_",
    [pa.list_(pa.float16()), pa.list_(pa.float32(), 2), pa.large_list(pa.float64()), pa.list_(pa.float16(), 2)],
    ids=str,
)
def test_vectors_are_lists_of_any_kind_of_float(tmp_path: Path, type_: pa.DataType) -> None:
    good, _ = check_vectors(write_vectors(tmp_path, pa.array(list(np.eye(2, dtype=np.float16)), type_)))
    np.testing.assert_array_equal(vectors_of(good), np.eye(2))


@pytest.mark.case(19)
@pytest.mark.parametrize("vector", [None, [], [1.0], [1.0, 2.0, 3.0]], ids=str)
@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list, pa.list_view])
def test_a_vector_of_another_length_is_set_aside(tmp_path: Path, vector: list[float] | None, list_type: Any) -> None:
    vectors = pa.array([vector, [1.0, 0.0], [0.0, 1.0]], list_type(pa.float32()))
    good, bad = check_vectors(write_vectors(tmp_path, vectors))
    np.testing.assert_array_equal(vectors_of(good), np.eye(2))
    assert [(row["item_id"], row["reason"]) for row in bad.to_pylist()] == [
        ("0", "its vector does not have 2 components")
    ]


@pytest.mark.case(19)
def test_a_null_among_vectors_of_fixed_size_is_set_aside(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 0.0], None, [0.0, 1.0]], pa.list_(pa.float16(), 2))
    good, bad = check_vectors(write_vectors(tmp_path, vectors))
    np.testing.assert_array_equal(vectors_of(good), np.eye(2))
    assert bad["item_id"].to_pylist() == ["1"]


@pytest.mark.parametrize(
    "vectors",
    [
        pa.array([[3, 4], [0, -2]], pa.list_(pa.int8())),
        pa.array([[3, 4], [0, -2]], pa.list_(pa.decimal128(5, 2))),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[3, 4], [0, -2]], np.float32)),
        pa.array([[3, 4], [0, -2]], pa.list_view(pa.float64())),
    ],
    ids=lambda array: str(array.type),
)
def test_vectors_are_lists_or_tensors_of_any_number(tmp_path: Path, vectors: pa.Array) -> None:
    good, bad = check_vectors(write_vectors(tmp_path, vectors))
    np.testing.assert_allclose(vectors_of(good), [[0.6, 0.8], [0, -1]], rtol=1e-6)
    assert bad.num_rows == 0


def test_most_of_the_first_vectors_say_how_many_components_there_are(tmp_path: Path) -> None:
    config = write_vectors(tmp_path, pa.array([None, [1.0], [1.0, 0.0], [0.0, 1.0]]))
    assert scan(config).dim == 2


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (pa.array(["a", "b"]), r"v\.parquet: expected column vector as lists of numbers, got string"),
        (pa.array([["1"], ["2"]]), r"v\.parquet: expected column vector as lists of numbers, got list"),
        (pa.array([[True], [False]]), r"v\.parquet: expected column vector as lists of numbers, got list"),
        (pa.array([[], None], pa.list_(pa.float32())), "expected vectors in column vector at .*, got empty ones alone"),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused(tmp_path: Path, vectors: pa.Array, message: str) -> None:
    config = write_vectors(tmp_path, vectors)
    with pytest.raises(DataError, match=message.replace("v\\.", "vectors\\.")):
        check_vectors(config)


def test_a_field_of_a_template_that_cannot_be_text_fails_before_any_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "catalogue").mkdir()
    pq.write_table(
        pa.table({"item_id": ["1"], **{k: [v] for k, v in ROW.items()}, "more": [{"a": 1}]}),
        tmp_path / "catalogue" / "a.parquet",
    )
    config = make_config(tmp_path)
    config = replace(config, catalogue=replace(config.catalogue, text={"default": "{more}"}))
    with pytest.raises(ConfigError, match="field 'more' cannot be rendered as text"):
        row_rules(config, scan(config))


def test_several_item_types_need_a_column_of_them(tmp_path: Path) -> None:
    config = write_vectors(tmp_path, pa.array([[1.0, 0.0]]))
    collections = {"tracks": {"item_types": ["track"]}, "shows": {"item_types": ["show"]}}
    config = make_config(tmp_path, catalogue={"collections": collections}, vectors={"path": config.vectors.path})
    with pytest.raises(ConfigError, match=r"no column item_type, .* must have one item type, got show, track"):
        scan(config)


def npy_config(folder: Path, vectors: np.ndarray, ids: list[str] | None = None, **options: Any) -> Config:
    np.save(folder / "v.npy", vectors, **options)
    pq.write_table(
        pa.table({"item_id": ids or [str(n) for n in range(len(vectors))]}), folder / "ids.parquet", row_group_size=3
    )
    return make_config(
        folder,
        catalogue={"collections": {"tracks": {"item_types": ["track"]}}},
        vectors={"path": f"{folder}/v.npy", "ids": f"{folder}/ids.parquet"},
    )


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_rows_of_an_npy_belong_to_the_ids_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr("jobs.inputs.catalogue.PART_ROWS", 3)
    vectors = np.random.default_rng(0).normal(size=(8, 4)).astype(dtype)
    config = npy_config(tmp_path, vectors)
    source = scan(config)
    assert len(source.parts) == 3
    tables = [check(config, part, source, None)[0] for part in source.parts]
    expected = vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    np.testing.assert_allclose(np.concatenate([vectors_of(table) for table in tables]), expected, atol=1e-3)
    assert [item_id for table in tables for item_id in table["item_id"].to_pylist()] == list("01234567")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((2, 4), np.int32), r"expected a float array \(num_rows, dim\) in C order, got int32"),
        (np.ones(4, np.float32), r"expected a float array \(num_rows, dim\) in C order, got float32 \(4,\)"),
        (np.ones((2, 4), np.float32, order="F"), r"expected a float array \(num_rows, dim\) in C order"),
        (np.ones((2, 4), ">f4"), r"expected a float array \(num_rows, dim\) in C order"),
        (np.ones((2, 4), np.longdouble), "expected float16, float32 or float64"),
        (np.ones((3, 4), np.float32), "expected 2 rows, as vectors.ids has, got 3"),
        (np.ones((2, 0), np.float32), "expected a float array"),
    ],
)
def test_an_npy_that_does_not_fit_is_refused(tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scan(npy_config(tmp_path, vectors, ids=["a", "b"]))
    assert "v.npy" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04 an npz is a zip", b"\x80\x04K\x01."])
def test_a_file_that_is_not_npy_is_refused(tmp_path: Path, content: bytes) -> None:
    config = npy_config(tmp_path, np.ones((2, 4), np.float32))
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.npy: expected a \.npy file") as caught:
        scan(config)
    assert "\n" not in str(caught.value)


def test_an_npy_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    config = npy_config(tmp_path, np.array([[{}], [{}]], dtype=object))
    with pytest.raises(DataError, match="expected a float array"):
        scan(config)


def test_an_npy_cut_short_is_refused(tmp_path: Path) -> None:
    config = npy_config(tmp_path, np.ones((200, 4), np.float32))
    data = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(data[:-8])
    with pytest.raises(DataError, match=r"v\.npy: expected 3328 bytes, as its header says, got 3320"):
        scan(config)
