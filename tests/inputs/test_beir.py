import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from indexing.catalogue.contract import conform_schema, conform_table, split_rows
from indexing.errors import DataError
from jobs.inputs.beir import read_beir

CORPUS = [
    {"_id": "d1", "title": "Rain", "text": "Water falls."},
    {"_id": "d2", "title": " ", "text": "é" * 100},
    {"_id": "d3", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "weather"}, {"_id": "q2", "text": "weather"}, {"_id": "q3", "text": "unjudged"}]
QRELS = ["query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0", "q2\td2\t1", "q2\td1\t-1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, entries in (("corpus", CORPUS), ("queries", QUERIES)):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(QRELS) + "\n")
    return tmp_path


def test_corpus_becomes_a_valid_catalogue(folder: Path) -> None:
    catalogue = read_beir(folder).catalogue
    assert catalogue.to_pylist() == [
        {"item_id": "d1", "item_type": "document", "title": "Rain", "description": "Water falls."},
        {"item_id": "d2", "item_type": "document", "title": "é" * 100, "description": None},
        {"item_id": "d3", "item_type": "document", "title": "d3", "description": None},
    ]
    table = conform_table(catalogue, conform_schema(catalogue.schema, "corpus"))
    good, bad = split_rows(table, ["document"])
    assert (good.num_rows, bad.num_rows) == (3, 0)


def test_only_judgements_above_zero_become_interactions(folder: Path) -> None:
    interactions = read_beir(folder).interactions
    assert interactions.schema.field("weight").type == pa.float32()
    assert interactions.to_pylist() == [
        {"query": "weather", "item_id": "d1", "weight": 2.0, "query_group": "q1"},
        {"query": "weather", "item_id": "d2", "weight": 1.0, "query_group": "q2"},
    ]


def test_split_names_the_judgements(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").write_bytes(b"query-id\tcorpus-id\tscore\r\nq3\td3\t1\r\n")
    interactions = read_beir(folder, split="dev").interactions
    assert interactions["query_group"].to_pylist() == ["q3"]
    with pytest.raises(DataError, match=r"train\.tsv: expected a file of the BEIR layout; No such file"):
        read_beir(folder, split="train")


def test_judgements_of_unknown_ids_are_counted_and_left_out(folder: Path) -> None:
    for line in (b"q9\td1\t1", b"q1\td9\t1", b"q9\td9\t2", b"q1\td8\t0"):
        append("qrels/test.tsv", line)(folder)
    beir = read_beir(folder)
    assert beir.interactions["item_id"].to_pylist() == ["d1", "d2"]
    assert beir.left_out == {
        "judgements of queries that queries.jsonl does not have": 2,
        "judgements of documents that corpus.jsonl does not have": 1,
    }


def test_an_id_may_be_a_number(folder: Path) -> None:
    append("corpus.jsonl", b'{"_id": 7, "text": "a"}')(folder)
    append("queries.jsonl", b'{"_id": 4, "text": "b"}')(folder)
    append("qrels/test.tsv", b"4\t7\t1")(folder)
    assert read_beir(folder).interactions.to_pylist()[-1] == {
        "query": "b",
        "item_id": "7",
        "weight": 1.0,
        "query_group": "4",
    }


def append(name: str, line: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(line + b"\n")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (append("corpus.jsonl", b'{"_id": "d4", "text'), r"corpus\.jsonl: line 4: expected JSON in UTF-8"),
        (append("corpus.jsonl", b'{"_id": "d4", "text": "\xff"}'), r"corpus\.jsonl: line 4: expected JSON in UTF-8"),
        (append("corpus.jsonl", rb'{"_id": "d4", "text": "\ud800"}'), r"corpus\.jsonl: line 4: expected JSON in UTF-8"),
        (append("corpus.jsonl", b'["d4"]'), r"corpus\.jsonl: line 4: expected a JSON object, got list"),
        (append("corpus.jsonl", b'{"_id": "d4"}'), r"corpus\.jsonl: line 4: expected a string 'text', got None"),
        (
            append("queries.jsonl", b'{"_id": 4.5, "text": "a"}'),
            r"queries\.jsonl: line 4: expected a string '_id', got 4.5",
        ),
        (append("queries.jsonl", b'{"_id": "q1", "text": "a"}'), r"queries\.jsonl: line 4: .* got 'q1' again"),
        (append("qrels/test.tsv", b"q1\td1\tyes"), r"test\.tsv: line 6: expected a number as score, got 'yes'"),
        (append("qrels/test.tsv", b"q1 d1 1"), r"test\.tsv: line 6: expected three fields between tabs, got 'q1 d1 1'"),
    ],
)
def test_error_names_the_file_and_the_line(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        read_beir(folder)
    assert "\n" not in str(caught.value)


def test_judgements_without_their_header_or_without_any_relevant_one_are_refused(folder: Path) -> None:
    qrels = folder / "qrels" / "test.tsv"
    qrels.write_text("\n".join(QRELS[1:]))
    with pytest.raises(DataError, match=r"line 1: expected the header query-id corpus-id score, got 'q1 d1 2'"):
        read_beir(folder)
    qrels.write_text("\n".join([QRELS[0], "q1\td1\t0"]))
    with pytest.raises(DataError, match="expected scores above 0 for known ids, got none of 0"):
        read_beir(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}: expected a file of the BEIR layout; No such file"):
        read_beir(folder)
