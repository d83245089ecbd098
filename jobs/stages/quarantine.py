"""quarantine.csv: every row of the catalogue that was set aside, and why, for a person to read."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from indexing.key_ranges import key_range
from indexing.store import Store
from indexing.store.blobs import hash_file
from jobs.inputs.catalogue import Part
from jobs.workspace.runs import read_run, run_key
from jobs.workspace.spreadsheet import csv_bytes

HEADER = ("file", "row", "item_id", "reason", "excerpt")
DUPLICATE = "item_id is already in an earlier row"


def write_bad_rows(workspace: Store, path: str, number: int, bad: pa.Table) -> None:
    """The bad rows of one part, of which the whole is made. `bad`: as `check_part` has them."""
    rows = bad.sort_by("source_row").select(["source_file", "source_row", "item_id", "reason", "excerpt"]).to_pylist()
    lines = ((row["source_file"], row["source_row"] + 1, row["item_id"], row["reason"], row["excerpt"]) for row in rows)
    workspace.put(piece_key(path, number), csv_bytes(lines))


def write_quarantine(
    workspace: Store, path: str, key: str, parts: Sequence[Part], with_bad: Sequence[int], ranges: Sequence[int]
) -> None:
    """One file of the bad rows of the parts `with_bad`, by file and row, and then the duplicates of the id `ranges`."""
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        made = Path(folder, "quarantine.csv")
        with made.open("wb") as file:
            file.write(csv_bytes([HEADER]))
            for number in sorted(with_bad):
                file.write(workspace.get(piece_key(path, number)))
            for number in sorted(ranges):
                file.write(csv_bytes(duplicate_rows(workspace, path, parts, number)))
        workspace.upload(key, made, hash_file(made))


def duplicate_rows(workspace: Store, path: str, parts: Sequence[Part], number: int) -> Iterator[tuple[object, ...]]:
    duplicates = read_run(workspace, run_key(path, "duplicates", number), "id_key", key_range(0, 1))
    for row in duplicates.sort_by([("source_part", "ascending"), ("source_row", "ascending")]).to_pylist():
        yield parts[row["source_part"]].name, row["source_row"] + 1, row["item_id"], DUPLICATE, None


def piece_key(path: str, number: int) -> str:
    return f"{path}/bad-{number:05d}.csv"
