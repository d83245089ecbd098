"""What people looked for and found: the queries that an encoder is judged by."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.errors import DataError
from indexing.id_keys import id_keys
from indexing.ranks import numbers, sorted_numbers
from jobs.inputs.inputs import Inputs
from jobs.inputs.items import scan_items
from jobs.run import Run

GENERAL_ITEMS, POOL_ROWS = 1_000, 20_000
KEYS = ["query_group", "query", "query_kind"]


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
    wanted = pc.unique(interactions["item_id"]).drop_null().sort()
    items = scan_items(run, inputs.source, inputs.rules, wanted, POOL_ROWS)
    is_led = pc.and_(pc.is_valid(interactions["item_id"]), pc.greater(interactions["weight"], 0))
    led = interactions.select([*KEYS, "item_id"]).filter(is_led)
    is_known = pc.is_in(led["item_id"], value_set=items["item_id"].combine_chunks())
    num_unknown = len(pc.unique(led["item_id"].filter(pc.invert(is_known))))
    found = led.filter(is_known)
    if not found.num_rows:
        raise DataError(f"evaluation.interactions: expected items of the catalogue, got {num_unknown} others")
    found = found.set_column(2, "query_kind", pc.fill_null(found["query_kind"], ""))
    queries, firsts, item_ids = _by_query(found)
    texts, groups, kinds = (queries[name].to_pylist() for name in ("query", "query_group", "query_kind"))
    return Judgements(
        texts=texts,
        groups=groups,
        kinds=kinds,
        relevant={str(row): set(item_ids[firsts[row] : firsts[row + 1]]) for row in range(len(texts))},
        items=items.filter(pc.is_in(items["item_id"], value_set=wanted)),
        num_unknown=num_unknown,
        general=pick_general(items.filter(items["in_pool"])),
    )


def _by_query(found: pa.Table) -> tuple[pa.Table, list[int], list[str]]:
    """(KEYS of each query, sorted; where its items begin, and the end of all; the items, one query after the other)."""
    columns = [sorted_numbers(found[name])[0] for name in KEYS]
    order = np.lexsort(columns[::-1])
    differs = [np.diff(column[order]) != 0 for column in columns]
    firsts = np.flatnonzero(np.append(True, np.logical_or.reduce(differs)))
    queries = found.select(KEYS).take(pa.array(order[firsts]))
    item, ids = numbers(found["item_id"])
    return queries, [*firsts.tolist(), len(order)], ids.to_numpy(zero_copy_only=False)[item[order]].tolist()


def pick_general(items: pa.Table) -> pa.Table:
    """At most `GENERAL_ITEMS` that have a description, chosen by hash."""
    is_described = [bool((text or "").strip()) for text in items["description"].to_pylist()]
    described = items.filter(pa.array(is_described, pa.bool_()))
    order = np.argsort(id_keys(described["item_id"].to_pylist()), kind="stable")[:GENERAL_ITEMS]
    return described.select(["item_id", "title", "description"]).take(pa.array(order))
