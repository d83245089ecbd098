"""What one step of training sees: pairs, further negatives, and what is known about them. Pure and stateless: the same
seed and step give the same batch, on any number of workers and after any number of restarts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from indexing.ranks import numbers
from jobs.config.training import TrainingConfig
from jobs.training.encoder.losses import Targets, known_positives
from jobs.training.encoder.sampler import GroupSampler


@dataclass(frozen=True)
class Step:
    """P pairs and C candidates, the items of the pairs first."""

    queries: list[str]
    candidates: list[str]
    targets: Targets


class Steps:
    """Random access to the steps of a training.

    `items` has `item_id` and `text`, one row an item; every item of `pairs` is among them. `hard` holds row numbers of
    items, int64 (num_pairs, num_hard), the mined negatives of each pair's query, -1 where there are fewer.
    """

    def __init__(self, pairs: pa.Table, items: pa.Table, hard: np.ndarray, settings: TrainingConfig) -> None:
        self.settings, self.hard, self.num_items = settings, hard, items.num_rows
        texts = (pairs["query"], items["text"])
        self.queries, self.texts = (column.cast(pa.large_string()).combine_chunks() for column in texts)
        self.sampler = GroupSampler(pairs, settings.shares, settings.seed)
        self.items = pc.index_in(pairs["item_id"], value_set=items["item_id"].combine_chunks()).to_numpy()
        self.groups = numbers(pairs["query_group"])[0]
        self.known = np.unique(self.groups.astype(np.int64) * self.num_items + self.items)
        self.expected = settings.batch_pairs * np.bincount(self.items, self.sampler.chances(), self.num_items)

    def step(self, number: int) -> Step:
        settings = self.settings
        rows = self.sampler.sample(number, settings.batch_pairs)
        generator = np.random.default_rng([settings.seed, number])
        negatives = self._negatives(rows, generator, settings.hard_share_at(number))
        candidates = np.concatenate([self.items[rows], negatives])
        expected = self.expected[candidates] + settings.num_negatives / self.num_items
        is_positive = known_positives(self.groups[rows], candidates, self.known, self.num_items)
        return Step(
            self.queries.take(pa.array(rows)).to_pylist(),
            self.texts.take(pa.array(candidates)).to_pylist(),
            Targets(
                torch.from_numpy(is_positive),
                torch.from_numpy(settings.log_q * np.log(expected)).float(),
            ),
        )

    def _negatives(self, rows: np.ndarray, generator: np.random.Generator, hard_share: float) -> np.ndarray:
        """int64 (num_negatives,): mined ones of random pairs of the batch, and for the rest any items."""
        count = self.settings.num_negatives
        uniform = generator.integers(self.num_items, size=count)
        if not self.hard.shape[1]:
            return uniform
        mined = self.hard[generator.choice(rows, count), generator.integers(self.hard.shape[1], size=count)]
        is_hard = (generator.random(count) < hard_share) & (mined >= 0)
        return np.where(is_hard, mined, uniform)


def unique_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts in order of first appearance, and for each text its place among them, int64 (num_texts,)."""
    places: dict[str, int] = {}
    rows = np.array([places.setdefault(text, len(places)) for text in texts], np.int64)
    return list(places), rows
