"""The keys under training and evaluation: what cannot work is refused by name."""

from itertools import pairwise
from typing import Any

import pytest

from indexing.errors import ConfigError
from jobs.config.training import EvaluationConfig, NegativesConfig, TrainingConfig


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainingConfig, {"steps": 0}, "training.steps: expected at least 1, got 0"),
        (TrainingConfig, {"temperature": 0.0}, "training.temperature: expected a number above 0, got 0.0"),
        (TrainingConfig, {"blend": 1.5}, "training.blend: expected a number from 0 to 1, got 1.5"),
        (TrainingConfig, {"dims": [64, 0]}, "training.dims: expected numbers of at least 1"),
        (TrainingConfig, {"shares": {"click": 1.0}}, "training.shares: expected shares of clicks, reformulations"),
        (TrainingConfig, {"shares": {"clicks": 0.0}}, "training.shares: expected shares from 0 up, one above 0"),
        (NegativesConfig, {"first_rank": 300}, "training.negatives.last_rank: expected at least first_rank, got 200"),
        (EvaluationConfig, {"metric": "ndcg"}, "evaluation.metric: expected one of nDCG@10, MRR@10"),
        (EvaluationConfig, {"depth": 10}, "evaluation.depth: expected at least 100, got 10"),
    ],
)
def test_what_cannot_work_is_refused_by_name(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        kind(**values)
    assert str(refusal.value).startswith(message)


def test_the_rate_rises_then_falls_to_nothing() -> None:
    settings = TrainingConfig(steps=100, warmup=0.1)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert max(rates) == 1 and rates[-1] == pytest.approx(1 / 90)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
