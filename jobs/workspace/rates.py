"""Rows per second of earlier runs, which the next plan estimates by."""

import json

from indexing.store import Store

RATES_KEY = "rates.json"


def read_rates(workspace: Store) -> dict[str, float]:
    """Rows/s of the stages `encode` and `build`, as the last large run in this workspace had them."""
    return json.loads(workspace.get(RATES_KEY)) if workspace.head(RATES_KEY) else {}
