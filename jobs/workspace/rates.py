"""Rows per second of earlier runs, from which the next plan estimates its time."""

import json
from collections.abc import Mapping

from indexing.store import Store

RATES_KEY = "rates.json"
MIN_ROWS_FOR_RATE = 2_000
"""With fewer rows, start-up time would distort the rate."""


def read_rates(workspace: Store) -> dict[str, float]:
    """Rows/s of the stages `encode` and `build`, as the last large run in this workspace measured them."""
    return json.loads(workspace.get(RATES_KEY)) if workspace.head(RATES_KEY) else {}


def keep_rates(workspace: Store, rows: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """Stores the rate of each stage that had enough rows in this run."""
    rates = {
        name: count / seconds[name] for name, count in rows.items() if count >= MIN_ROWS_FOR_RATE and name in seconds
    }
    if rates:
        workspace.put(RATES_KEY, json.dumps({**read_rates(workspace), **rates}).encode())
