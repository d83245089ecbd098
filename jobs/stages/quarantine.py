"""quarantine.csv: every row of the catalogue that was set aside, and why, for a person to read."""

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from indexing.store import Store
from indexing.store.blobs import hash_file
from jobs.inputs.catalogue import Part
from jobs.workspace.spreadsheet import csv_bytes

HEADER = ("file", "row", "item_id", "reason", "excerpt")
DUPLICATE = "item_id is already in an earlier row"


def write_bad_rows(workspace: Store, path: str, number: int, bad: pa.Table) -> None:
    """The bad rows of one part, of which the whole is made. `bad`: as `check_part` has them."""
    rows = bad.sort_by("source_row").select(["source_file", "source_row", "item_id", "reason", "excerpt"]).to_pylist()
    lines = [(row["source_file"], row["source_row"] + 1, row["item_id"], row["reason"], row["excerpt"]) for row in rows]
    if lines:
        workspace.put(f"{path}/bad-{number:05d}.csv", csv_bytes(lines))


def write_duplicates(workspace: Store, path: str, number: int, parts: Sequence[Part], repeated: pa.Table) -> None:
    """The rows of one bucket whose ids earlier rows have."""
    rows = repeated.select(["source_part", "source_row", "item_id"])
    rows = rows.sort_by([("source_part", "ascending"), ("source_row", "ascending")]).to_pylist()
    lines = [(parts[row["source_part"]].name, row["source_row"] + 1, row["item_id"], DUPLICATE, None) for row in rows]
    workspace.put(f"{path}/duplicates-{number:05d}.csv", csv_bytes(lines))


def write_quarantine(workspace: Store, path: str) -> Counter[str]:
    """One file of the bad rows, by file and row, then of the duplicates. Returns reason → number of bad rows."""
    reasons: Counter[str] = Counter()
    bad, duplicates = (list(workspace.list(f"{path}/{kind}-")) for kind in ("bad", "duplicates"))
    if not bad and not duplicates:
        return reasons
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        made = Path(folder, "quarantine.csv")
        with made.open("wb") as file:
            file.write(csv_bytes([HEADER]))
            for info in bad:
                data = workspace.get(info.key)
                reasons.update(line[3] for line in csv.reader(io.StringIO(data.decode(), newline="")))
                file.write(data)
            for info in duplicates:
                file.write(workspace.get(info.key))
        workspace.upload(f"{path}/quarantine.csv", made, hash_file(made))
    return reasons
