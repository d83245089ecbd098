"""quarantine.csv: what was set aside, where it was, and why."""

from pathlib import Path

import pyarrow as pa
import pytest

from indexing.store import open_store
from jobs.config.schema import CatalogueConfig, CollectionConfig
from jobs.inputs.catalogue import Part
from jobs.inputs.columns import Columns
from jobs.inputs.rows import BAD_ROWS
from jobs.report.console import MAX_REASONS, print_quarantine
from jobs.report.terminal import PlainConsole
from jobs.stages.quarantine import write_bad_rows, write_duplicates, write_quarantine


@pytest.mark.case(19)
def test_the_file_lists_bad_rows_by_file_and_row_and_then_the_duplicates(store_url: str, tmp_path: Path) -> None:
    workspace = open_store(store_url)
    workspace.put("x", b"")
    (info,) = workspace.list("x")
    parts = [
        Part(number, workspace, info, "source", name, Columns(), 0, 1, 0) for number, name in enumerate(("a.csv", "b"))
    ]
    for number, rows in {1: [("b", 7, "=id", "why", "title: x\ny")], 0: [("a.csv", 2, None, "why", "2")]}.items():
        table = pa.Table.from_pylist([dict(zip(BAD_ROWS.names, row, strict=True)) for row in rows], BAD_ROWS)
        write_bad_rows(workspace, "items/i", number, table)
    repeated = pa.table({"source_part": [1, 0], "source_row": [3, 9], "item_id": ["t1", "t1"]})
    write_duplicates(workspace, "items/i", 0, parts, repeated)
    assert write_quarantine(workspace, "items/i") == {"why": 2}
    assert workspace.get("items/i/quarantine.csv").decode().splitlines() == [
        "file,row,item_id,reason,excerpt",
        "a.csv,3,,why,2",
        "b,8,'=id,why,\"title: x",
        'y"',
        "a.csv,10,t1,item_id is already in an earlier row,",
        "b,4,t1,item_id is already in an earlier row,",
    ]


def test_the_most_frequent_reasons_are_printed_with_their_counts(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {f"item_type 'x{number:02}' is in no collection": 1 for number in range(12)}
    print_quarantine(PlainConsole(), {**reasons, "title is null \x1b[31mor blank": 1200}, "file:///q.csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "set aside 1,212 rows: file:///q.csv",
        "  1,200  title is null [31mor blank",
        "  1  item_type 'x00' is in no collection",
    ]
    assert lines[-1] == f"  3  for {13 - MAX_REASONS} other reasons"


@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("share", "num_rows", "allowed"),
    [
        (0.01, 5, 5),
        (0.01, 99, 5),
        (0.01, 100, 1),
        (0.01, 524, 5),
        (0.01, 10_000, 100),
        (0.0, 5, 0),
        (0.0, 1000, 0),
        (1, 3, 5),
    ],
)
def test_a_handful_of_few_rows_may_be_bad_and_a_share_of_many(share: float, num_rows: int, allowed: int) -> None:
    collections = {"tracks": CollectionConfig(item_types=["track"])}
    assert CatalogueConfig(collections=collections, max_quarantined=share).max_bad_rows(num_rows) == allowed
