"""Pairs of random logs, as columns make them, against the same rules written row by row."""

from collections import defaultdict
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.inputs.interactions import INTERACTIONS
from jobs.training.encoder.pairs import PAIRS, clicked_pairs, reformulated_pairs

Row = dict[str, Any]
MAX_GAP_S = 3.0


def random_log(seed: int) -> pa.Table:
    """In chunks; with ties, missing values and numbers whose sum depends on their order."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 80))

    def pick(values: list[Any]) -> list[Any]:
        return [values[number] for number in rng.integers(len(values), size=num_rows)]

    log = pa.table(
        {
            "query": pick(["jazz", "Jazz", "jaz", "東京", "🎵", "blues"]),
            "item_id": pick(["b", "a", "ü", " ", None, None]),
            "weight": pa.array(pick([0.0, 0.1, 1e8, 3.7, 1 / 3]), pa.float32()),
            "query_group": pick(["g", "f", "e"]),
            "session_id": pick(["s", "r", "t", None]),
            "timestamp": pa.array(pick([1.0, 2.0, 4.0, 8.5, None, float("nan")]), pa.float64()),
        }
    )
    columns = {name: log[name] if name in log.column_names else pa.nulls(num_rows) for name in INTERACTIONS.names}
    log, cut = pa.table(columns).cast(INTERACTIONS), num_rows // 3
    return pa.concat_tables([log.slice(0, cut), log.slice(cut, 0), log.slice(cut)])


def is_click(row: Row) -> bool:
    return row["item_id"] is not None and row["item_id"].strip() != "" and row["weight"] > 0


def summed(clicks: list[Row], source: str) -> pa.Table:
    weights: dict[tuple[str, str, str], float] = defaultdict(float)
    for row in clicks:
        weights[row["query_group"], row["query"], row["item_id"]] += row["weight"]
    rows = [
        {"query": query, "item_id": item, "weight": weight, "query_group": group, "source": source}
        for (group, query, item), weight in sorted(weights.items())
    ]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def plain_reformulations(log: pa.Table) -> pa.Table:
    rows = [row for row in log.to_pylist() if row["session_id"] is not None and np.isfinite(row["timestamp"] or np.nan)]
    rows.sort(key=lambda row: (row["session_id"], row["timestamp"], row["query"]))
    searches = [list(search) for _, search in groupby(rows, key=lambda row: (row["session_id"], row["query"]))]
    clicks = []
    for failed, following in pairwise(searches):
        gap_s = following[0]["timestamp"] - failed[-1]["timestamp"]
        is_same = failed[0]["session_id"] == following[0]["session_id"]
        if is_same and 0 < gap_s <= MAX_GAP_S and not any(map(is_click, failed)):
            clicks += [row | {"query": failed[0]["query"]} for row in following if is_click(row)]
    return summed(clicks, "reformulations")


@pytest.mark.parametrize("seed", range(40))
def test_pairs_of_a_log_are_those_that_its_rows_make_one_by_one(seed: int) -> None:
    log = random_log(seed)
    assert clicked_pairs(log).equals(summed([row for row in log.to_pylist() if is_click(row)], "clicks"))
    assert reformulated_pairs(log, MAX_GAP_S).equals(plain_reformulations(log))


def test_the_random_logs_have_pairs_of_both_kinds() -> None:
    logs = [random_log(seed) for seed in range(40)]
    assert sum(clicked_pairs(log).num_rows for log in logs) > 400
    assert sum(reformulated_pairs(log, MAX_GAP_S).num_rows for log in logs) > 20
