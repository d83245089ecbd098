"""What people looked for and found: the queries that an encoder is judged by."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from indexing.errors import DataError
from indexing.key_ranges import id_keys
from jobs.inputs.inputs import Inputs
from jobs.inputs.items import scan_items
from jobs.run import Run

GENERAL_ITEMS, POOL_ROWS = 1_000, 20_000


@dataclass(frozen=True)
class Judgements:
    """What people looked for and found; one row a query. Queries are named by their row, since texts may repeat."""

    texts: list[str]
    groups: list[str]
    kinds: list[str]
    relevant: dict[str, set[str]]
    items: pa.Table
    """The relevant items in the catalogue: item_id, item_type, popularity."""
    num_unknown: int
    """Relevant items that the catalogue does not have."""
    general: pa.Table
    """item_id, title and description of some items: whoever knows the title should find the description."""

    @property
    def names(self) -> list[str]:
        return list(map(str, range(len(self.texts))))


def read_judgements(run: Run, inputs: Inputs, interactions: pa.Table) -> Judgements:
    """Raises DataError where no query leads to an item of the catalogue."""
    wanted = pa.array(sorted(set(interactions["item_id"].drop_null().to_pylist())), pa.string())
    items = scan_items(run, inputs.source, inputs.rules, wanted, POOL_ROWS)
    known = set(items["item_id"].to_pylist())
    rows: dict[tuple[str, str, str], set[str]] = {}
    unknown: set[str] = set()
    columns = (interactions[name].to_pylist() for name in ("query_group", "query", "query_kind", "item_id", "weight"))
    for group, query, kind, item_id, weight in zip(*columns, strict=True):
        if item_id is not None and weight > 0:
            (rows.setdefault((group, query, kind or ""), set()) if item_id in known else unknown).add(item_id)
    if not rows:
        raise DataError(f"evaluation.interactions: expected items of the catalogue, got {len(unknown)} others")
    keys = sorted(rows)
    return Judgements(
        texts=[query for _, query, _ in keys],
        groups=[group for group, _, _ in keys],
        kinds=[kind for _, _, kind in keys],
        relevant={str(row): rows[key] for row, key in enumerate(keys)},
        items=items.filter(pa.array(np.isin(items["item_id"].to_pylist(), wanted.to_pylist()))),
        num_unknown=len(unknown),
        general=pick_general(items.filter(items["in_pool"])),
    )


def pick_general(items: pa.Table) -> pa.Table:
    """At most `GENERAL_ITEMS` that have a description, chosen by hash."""
    described = items.filter(pa.array([bool((text or "").strip()) for text in items["description"].to_pylist()]))
    order = np.argsort(id_keys(described["item_id"].to_pylist()), kind="stable")[:GENERAL_ITEMS]
    return described.select(["item_id", "title", "description"]).take(pa.array(order))
