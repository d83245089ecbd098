"""Rows per second of earlier runs, which the next plan estimates by."""

import json
from collections.abc import Mapping

from indexing.store import Store

RATES_KEY = "rates.json"
MIN_ROWS_FOR_RATE = 2_000
"""Fewer rows say more of start-up than of the rate."""


def read_rates(workspace: Store) -> dict[str, float]:
    """Rows/s of the stages `encode` and `build`, as the last large run in this workspace had them."""
    return json.loads(workspace.get(RATES_KEY)) if workspace.head(RATES_KEY) else {}


def keep_rates(workspace: Store, rows: Mapping[str, int], seconds: Mapping[str, float]) -> None:
    """Notes the rate of each stage that this run had enough rows of."""
    rates = {
        name: count / seconds[name] for name, count in rows.items() if count >= MIN_ROWS_FOR_RATE and name in seconds
    }
    if rates:
        workspace.put(RATES_KEY, json.dumps({**read_rates(workspace), **rates}).encode())
