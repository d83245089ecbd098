"""CSV for people: a spreadsheet that opens it shows what a cell holds, and runs nothing."""

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a text begins with that a spreadsheet would run."""


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as UTF-8. A text that begins like a formula gets an apostrophe before it; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text)  # lines end in CR and LF: with LF alone Python (3.11) leaves a CR in a cell unquoted
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row])
    return text.getvalue().encode()
