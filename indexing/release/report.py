"""The build report: every figure that validation measured, and every gate. It is published with the release.

Console, run record and release file read these classes, so a figure has one name everywhere.
"""

import json
from dataclasses import dataclass
from typing import Any

from indexing.release.codec import to_plain


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One check: what was measured, what was expected, and whether it passes."""

    name: str
    scope: str
    """The collection or shard that it checks."""
    value: float
    expected: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class QueryRecall:
    """Recall of one set of queries: sampled items, or the configured queries."""

    num_queries: int
    recall_at_10: float


@dataclass(frozen=True, kw_only=True)
class RecallLoss:
    """Shares of the true neighbours that are lost, by cause."""

    graph: float
    """Not found by the graph of their own shard."""
    shard_merge: float
    """Found by their shard, and lost when the shards' results were merged."""
    vector_precision: float | None = None
    """Estimated: changed by the precision of the stored vectors; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class CollectionReport:
    """The figures of one collection at the `ef_search` that was chosen for it."""

    num_items: int
    ef_search: int
    self_match: float
    items: QueryRecall
    queries: QueryRecall | None = None
    """None where no `validation.queries` are configured."""
    worst_shard_recall_at_10: float
    recall_at_10_by_slice: dict[str, float]
    recall_at_10_by_ef: dict[str, float]
    recall_loss: dict[str, RecallLoss]
    """By slice, and over `all`."""
    measured_in: int | None = None
    """The release whose figures these are, where only what is new was measured since; None where all was measured."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    collections: dict[str, CollectionReport]
    gates: tuple[Gate, ...]

    def to_bytes(self) -> bytes:
        """JSON, as it is published."""
        return json.dumps(to_plain(self), sort_keys=True, indent=1).encode()


def lowest_recall(validation: dict[str, Any]) -> float | None:
    """recall@10 of the collection where it is lowest, from a release file's figures; None where they have none."""
    figures = [value for value in validation.values() if isinstance(value, dict)]
    return min((value["items"]["recall_at_10"] for value in figures if "items" in value), default=None)
