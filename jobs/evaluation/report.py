"""What an evaluation found, of one encoder or of several against each other."""

import json
from dataclasses import dataclass, field

from indexing.release.codec import to_plain

Means = dict[str, float]
"""Metric → mean over the queries."""


@dataclass(frozen=True)
class Difference:
    """A mean difference and its bootstrap interval; None is what could not be measured."""

    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "an unknown amount"
        has_interval = self.low is not None and self.high is not None
        return f"{self.mean:+.4f}" + (f" [{self.low:+.4f}, {self.high:+.4f}]" if has_interval else "")


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    num_queries: int
    num_unknown_items: int
    """Relevant items that the catalogue does not have."""
    left_out: dict[str, int] = field(default_factory=dict)
    """What else could not be judged by → how many."""
    rankers: dict[str, dict[str, Means]]
    """Ranker → "exact", "hnsw" or a slice → means."""
    differences: dict[str, dict[str, dict[str, Difference]]]
    """Other ranker → part, as above → metric → the first ranker less the other."""

    def to_bytes(self) -> bytes:
        return json.dumps(to_plain(self), sort_keys=True, indent=1).encode()
