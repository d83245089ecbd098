"""Data sets in the BEIR layout (Thakur et al., BEIR, NeurIPS 2021) as a catalogue and interactions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from indexing.errors import DataError

QRELS_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Beir:
    """A data set as tables."""

    catalogue: pa.Table
    """item_id, item_type (always "document"), title and description."""
    interactions: pa.Table
    """query, item_id, weight and query_group, the query's id: a row for each judgement above 0."""
    left_out: dict[str, int]
    """Which judgements above 0 are of an unknown id → their number. BEIR's own ArguAna and NFCorpus have such."""


def read_beir(folder: Path, split: str = "test") -> Beir:
    """The data set of corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv. An id may be a number.

    Raises DataError, with file and line, for what is missing or does not have this layout.
    """
    corpus = _read_texts(folder / "corpus.jsonl")
    queries = _read_texts(folder / "queries.jsonl")
    fields = [_fields(item_id, *document) for item_id, document in corpus.items()]
    catalogue = pa.table(
        {
            "item_id": pa.array(corpus, pa.string()),
            "item_type": pa.repeat("document", len(corpus)),
            "title": pa.array([title for title, _ in fields], pa.string()),
            "description": pa.array([text for _, text in fields], pa.string()),
        }
    )
    path = folder / "qrels" / f"{split}.tsv"
    relevant = [judged for judged in _read_qrels(path) if judged[2] > 0]
    judgements = [judged for judged in relevant if judged[0] in queries and judged[1] in corpus]
    if not judgements:
        raise DataError(f"{path}: expected scores above 0 for known ids, got none of {len(relevant)}")
    left_out = {
        "judgements of queries that queries.jsonl does not have": sum(one[0] not in queries for one in relevant),
        "judgements of documents that corpus.jsonl does not have": sum(
            one[0] in queries and one[1] not in corpus for one in relevant
        ),
    }
    query_ids, item_ids, scores = zip(*judgements, strict=True)
    interactions = pa.table(
        {
            "query": pa.array([queries[query_id][1] for query_id in query_ids], pa.string()),
            "item_id": pa.array(item_ids, pa.string()),
            "weight": pa.array(scores, pa.float32()),
            "query_group": pa.array(query_ids, pa.string()),
        }
    )
    return Beir(catalogue, interactions, {reason: count for reason, count in left_out.items() if count})


def _fields(item_id: str, title: str, text: str) -> tuple[str, str | None]:
    """Title and description. The contract requires a title that is not blank: a text without one becomes the title, so
    that nothing is encoded twice, and a document without any text, which does occur, gets its id.
    """
    return (title.strip(), text) if title.strip() else (text.strip() or item_id, None)


def _read_texts(path: Path) -> dict[str, tuple[str, str]]:
    """_id → (title, text) of a .jsonl file. As in BEIR's own reader the title may be missing: queries have none."""
    texts: dict[str, tuple[str, str]] = {}
    for number, line in _lines(path):
        try:
            entry = json.loads(line)
            json.dumps(entry, ensure_ascii=False).encode()  # half a surrogate pair is valid JSON, but not UTF-8
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number}: expected JSON in UTF-8, got {line[:40]!r}") from error
        if not isinstance(entry, dict):
            raise DataError(f"{path}: line {number}: expected a JSON object, got {type(entry).__name__}")
        entry = {"title": "", **{key: value for key, value in entry.items() if value is not None}}
        if type(entry.get("_id")) is int:
            entry["_id"] = str(entry["_id"])
        for key in ("_id", "title", "text"):
            if not isinstance(entry.get(key), str):
                raise DataError(f"{path}: line {number}: expected a string '{key}', got {entry.get(key)!r}")
        if entry["_id"] in texts:
            raise DataError(f"{path}: line {number}: expected each _id once, got '{entry['_id']}' again")
        texts[entry["_id"]] = (entry["title"], entry["text"])
    return texts


def _read_qrels(path: Path) -> Iterator[tuple[str, str, float]]:
    """(query id, item id, score) of each line after the header."""
    for number, line in _lines(path):
        fields = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
        if number == 1 and fields == QRELS_HEADER:
            continue
        if number == 1 or len(fields) != 3:
            expected = f"the header {' '.join(QRELS_HEADER)}" if number == 1 else "three fields between tabs"
            raise DataError(f"{path}: line {number}: expected {expected}, got '{' '.join(fields)}'")
        query_id, item_id, score = fields
        try:
            yield query_id, item_id, float(score)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: expected a number as score, got '{score}'") from error


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of each line that is not blank."""
    try:
        with path.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except OSError as error:
        raise DataError(f"{path}: expected a file of the BEIR layout; {error.strerror}") from error
