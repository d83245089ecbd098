"""Whatever rows, names and reasons hold, what is printed of them cannot steer the terminal."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.evaluation.report import Difference, EvaluationReport
from jobs.plan import Plan
from jobs.report.console import print_quarantine
from jobs.report.evaluation import print_evaluation
from jobs.report.plan import print_plan
from jobs.report.terminal import PlainConsole

pytestmark = pytest.mark.case(28)
EVIL = "a\x1b[31mred\x1b]0;owned\x07 b\x9b2J c\u202egnp d\re"
STEERING = frozenset("\x1b\x07\x9b\u202e\r")


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "[31mred" in text
    assert STEERING.isdisjoint(text)
    return text


@pytest.fixture
def evil_file(tmp_path: Path) -> str:
    columns = {"id": ["1", "2"], "title": [EVIL, "x"], "artist": [EVIL, None], EVIL: [1, 2]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def test_init_shows_rows_and_names_without_control_characters(
    evil_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", evil_file, "--out", str(tmp_path / "my.yaml")]) == 0
    assert "with hits     a[31mred" in printed(capsys)


def test_init_names_columns_without_control_characters_where_it_cannot_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({EVIL: [1]}), tmp_path / "a.parquet")
    assert main(["init", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "my.yaml")]) == 3
    printed(capsys)


def test_a_plan_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(
        num_rows=1,
        num_bad=0,
        num_to_encode=1,
        num_reused=0,
        changes=None,
        collections={EVIL: (1, 1)},
        index_bytes=1,
        why_held=EVIL,
        why_rebuild=EVIL,
        num_to_index=1,
        seconds=1.0,
        is_measured=True,
        worker_bytes=1,
    )
    print_plan(plan, PlainConsole())
    assert printed(capsys).count("[31mred") == 3


def test_reasons_of_the_quarantine_have_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_quarantine(PlainConsole(), {f"item_type '{EVIL}' is in no collection": 1}, "quarantine.csv")
    printed(capsys)


def test_an_evaluation_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Slices are called by languages, which come from the catalogue."""
    differences = {"bm25": {EVIL: {"nDCG@10": Difference(0.1, 0.0, 0.2)}}}
    report = EvaluationReport(num_queries=1, num_unknown_items=0, rankers={}, differences=differences)
    print_evaluation(PlainConsole(), report, "nDCG@10")
    printed(capsys)
