"""When a new encoder is accepted, and what is said when it is not."""

import re
from typing import Any

import pytest

from jobs.config.training import EvaluationConfig
from jobs.evaluation.acceptance import why_not_accepted
from jobs.evaluation.report import Difference, EvaluationReport

SETTINGS = EvaluationConfig(metric="nDCG@10", max_loss=0.02)


def report(**parts: tuple[float | None, float | None]) -> EvaluationReport:
    """Part → (mean, lower bound) of the difference; what is not given is better beyond doubt."""
    values = {"exact": (0.05, 0.01), "hnsw": (0.05, 0.01), "popularity tail": (0.03, 0.0), **parts}
    found = {
        part.replace("_", " "): {"nDCG@10": Difference(mean, low, None if low is None else 0.2)}
        for part, (mean, low) in values.items()
    }
    return EvaluationReport(num_queries=1, num_unknown_items=0, rankers={}, differences={"incumbent": found})


def test_better_beyond_the_interval_and_on_no_slice_worse_is_accepted() -> None:
    assert why_not_accepted(report(general=(-0.019, -0.3)), "incumbent", SETTINGS) == []


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"exact": (0.05, -0.001)}, r"nDCG@10 \(exact\) differs by \+0\.0500 \[-0\.0010"),
        ({"exact": (0.05, 0.0)}, r"\(exact\)"),
        ({"hnsw": (0.05, -0.001)}, r"\(hnsw\)"),
        ({"exact": (0.05, None)}, r"\(exact\)"),
        ({"general": (-0.021, -0.03)}, r"on general differs by -0\.0210 .*expected at least -0\.02"),
        ({"popularity_tail": (None, None)}, "on popularity tail differs by an unknown amount"),
    ],
)
def test_anything_less_is_refused_with_the_reason(parts: dict[str, Any], reason: str) -> None:
    reasons = why_not_accepted(report(**parts), "incumbent", SETTINGS)
    assert len(reasons) == 1
    assert re.search(reason, reasons[0])
