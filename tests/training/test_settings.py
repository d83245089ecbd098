"""The keys under training and evaluation: what cannot work is refused by name."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from indexing.errors import ConfigError
from jobs.config.load import load_config
from jobs.config.training import TrainingConfig

COLLECTIONS = {"tracks": {"item_types": ["track"]}}
MINIMAL = {"name": "x", "store": "s", "workspace": "w", "catalogue": {"path": "c", "collections": COLLECTIONS}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=0", "training.steps: expected an integer of at least 1, got 0"),
        ("training.temperature=0.0", "training.temperature: expected a number above 0, got 0.0"),
        ("training.blend=1.5", "training.blend: expected a share from 0 to 1, got 1.5"),
        ("training.weight_decay=-1", "training.weight_decay: expected a number of at least 0, got -1"),
        ("training.dims=[64,0]", "training.dims[1]: expected an integer of at least 1, got 0"),
        ("training.shares={click: 1.0}", "unknown key training.shares.click; did you mean clicks?"),
        ("training.shares.clicks=-1", "training.shares.clicks: expected a number of at least 0, got -1"),
        (
            "training.shares={clicks: 0, reformulations: 0, title_creator: 0}",
            "training.shares: expected at least one share above 0, got {'clicks': 0.0",
        ),
        (
            "training.negatives.first_rank=300",
            "training.negatives.last_rank: expected at least training.negatives.first_rank, got 200",
        ),
        ("evaluation.metric=ndcg", "evaluation.metric: expected nDCG@10, MRR@10"),
        ("evaluation.depth=10", "evaluation.depth: expected an integer of at least 100, got 10"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(MINIMAL))
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")):
        load_config(str(path), [override])


def test_the_rate_rises_then_falls_to_zero() -> None:
    settings = TrainingConfig(steps=100, warmup=0.1)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert max(rates) == 1 and rates[-1] == pytest.approx(1 / 90)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
