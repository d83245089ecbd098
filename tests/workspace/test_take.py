"""Rows are taken from columns of any size, in chunks that Arrow can address."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.workspace import take
from jobs.workspace.take import take_rows

TEXTS = [f"{number}" * (number % 7) if number % 5 else None for number in range(200)]
TABLE = pa.table(
    {
        "text": pa.chunked_array([TEXTS[:90], TEXTS[90:]], pa.string()),
        "data": pa.array([None if text is None else text.encode() for text in TEXTS], pa.binary()),
        "number": range(200),
        "list": [[text] for text in TEXTS],
    }
)
ROWS = pa.array([*np.random.default_rng(0).permutation(200).tolist(), None, 3, 3])


@pytest.mark.parametrize("max_bytes", [1, 64, 1 << 30])
def test_rows_are_those_that_arrow_takes_in_chunks_of_bounded_size(
    max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(take, "MAX_BYTES", max_bytes)
    taken = take_rows(TABLE, ROWS)
    assert taken.equals(TABLE.take(ROWS))
    assert taken.schema.equals(TABLE.schema)
    longest = max(len(text or "") for text in TEXTS)
    for name in ("text", "data"):
        sizes = [sum(len(value or "") for value in chunk.to_pylist()) for chunk in taken[name].chunks]
        assert max(sizes) < max_bytes + longest


def test_no_rows_are_none() -> None:
    assert take_rows(TABLE, np.empty(0, np.int64)).num_rows == 0
    assert take_rows(TABLE.slice(0, 0), np.empty(0, np.int64)).num_rows == 0
