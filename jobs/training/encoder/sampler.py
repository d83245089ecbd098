"""Which pairs a step of training sees, and how pairs are split: by group, by hash, never by row."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.errors import ConfigError, DataError
from indexing.ranks import numbers
from jobs.config.training import SOURCES, PairSource
from jobs.training.encoder.pairs import hash_words


def split_groups(groups: pa.ChunkedArray | list[str], num_folds: int, seed: int) -> np.ndarray:
    """int64 (num_rows,): the fold of each row by a hash of its group, so that no group lies in two folds."""
    column = groups if isinstance(groups, pa.ChunkedArray) else pa.chunked_array([groups], pa.string())
    number, names = numbers(column)
    folds = [hash_words(seed, group)[0] % num_folds for group in names.to_pylist()]
    fold_of_row: np.ndarray = np.array(folds, np.int64)[number]
    return fold_of_row


class GroupSampler:
    """Batches of pairs: the sources by their shares, groups of a source in turn, one pair of a group by its weight.

    So a playlist with 2,000 tracks weighs no more than one with 20. A batch depends on its step alone: a run that
    resumes sees the same batches, whatever the number of workers.
    """

    def __init__(self, pairs: pa.Table, shares: Mapping[PairSource, float], seed: int) -> None:
        """`shares`: source → share, of which sources without pairs are left out. Raises ConfigError on wrong shares."""
        if not all(share >= 0 for share in shares.values()) or not sum(shares.values()) > 0:
            raise ConfigError(f"shares: expected numbers from 0 up with a sum above 0, got {dict(shares)}")
        wanted = [name for name in sorted(shares, key=SOURCES.index) if shares[name] > 0]
        found = set(pc.unique(pairs["source"]).to_pylist())
        names = [name for name in wanted if name in found]
        if not names:
            raise DataError(f"expected pairs from {', '.join(wanted)}, got none")
        self._sources = [SourceGroups.of(pairs, name) for name in names]
        self._shares = np.array([shares[name] for name in names]) / sum(shares[name] for name in names)
        self._seed, self._num_pairs = seed, pairs.num_rows

    def chances(self) -> np.ndarray:
        """float64 (num_pairs,), sum 1: how often each row is drawn; 0 for the rows of sources without a share."""
        found = np.zeros(self._num_pairs)
        for source, share in zip(self._sources, self._shares, strict=True):
            found[source.rows] = share * source.weights / (len(source.offsets) - 1)
        return found

    def sample(self, step: int, num_pairs: int) -> np.ndarray:
        """int64 (num_pairs,): row numbers of the pairs of one batch, source by source."""
        counts = share_out(num_pairs, self._shares)
        return np.concatenate(
            [source.draw(self._seed, step, int(count)) for source, count in zip(self._sources, counts, strict=True)]
        )


def share_out(total: int, shares: np.ndarray) -> np.ndarray:
    """int64 (num_shares,) with sum `total`, by the largest remainders (Hamilton's method); the first where equal."""
    counts: np.ndarray = np.floor(shares * total).astype(np.int64)
    by_remainder = np.argsort(counts - shares * total, kind="stable")
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts


@dataclass(frozen=True, kw_only=True)
class SourceGroups:
    """The pairs of one source, group by group."""

    number: int
    """Its place in SOURCES, which seeds it: the draws of a source do not change with the other sources."""
    rows: np.ndarray
    """int64 (num_pairs,): row numbers in the table of pairs."""
    offsets: np.ndarray
    """int64 (num_groups + 1,): group g has rows[offsets[g] : offsets[g + 1]]."""
    weights: np.ndarray
    """float64 (num_pairs,), sum 1 in each group."""
    cumulative: np.ndarray
    """float64 (num_pairs,): running sum of `weights`, so that group g lies between g and g + 1."""

    @classmethod
    def of(cls, pairs: pa.Table, source: str) -> "SourceGroups":
        rows = np.flatnonzero(pc.equal(pairs["source"], source).to_numpy())
        groups, _ = numbers(pairs["query_group"].take(pa.array(rows)))
        order = np.argsort(groups, kind="stable")
        rows, sizes = rows[order], np.bincount(groups)
        offsets = np.append(0, np.cumsum(sizes))
        weights = pairs["weight"].to_numpy()[rows].astype(np.float64)
        weights /= np.repeat(np.add.reduceat(weights, offsets[:-1]), sizes)
        number = SOURCES.index(source)
        return cls(number=number, rows=rows, offsets=offsets, weights=weights, cumulative=np.cumsum(weights))

    def draw(self, seed: int, step: int, count: int) -> np.ndarray:
        """int64 (count,): one row of each of the next `count` groups; other rows of a group drawn twice, if it can."""
        groups = self._groups_at(seed, step * count + np.arange(count))
        rng = np.random.default_rng([seed, self.number, step, 1])
        at = np.searchsorted(self.cumulative, groups + rng.random(count), side="right")
        at = np.clip(at, self.offsets[groups], self.offsets[groups + 1] - 1)  # the sums round
        distinct, counts = np.unique(groups, return_counts=True)
        for group in distinct[counts > 1]:
            is_group = groups == group
            at[is_group] = self._draw_distinct(group, int(is_group.sum()), rng)
        return self.rows[at]

    def _groups_at(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """int64 (num_positions,): groups at `positions` of an endless sequence of permutations, one an epoch."""
        num_groups = len(self.offsets) - 1
        epochs, places = np.divmod(positions, num_groups)
        groups = np.empty_like(places)
        for epoch in np.unique(epochs):
            is_epoch = epochs == epoch
            groups[is_epoch] = _permutation(seed, self.number, int(epoch), num_groups)[places[is_epoch]]
        return groups

    def _draw_distinct(self, group: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """int64 (count,): rows of `group` by weight without replacement, by exponential keys (Efraimidis & Spirakis
        2006); where it has fewer, all of them in turn."""
        first, end = self.offsets[group : group + 2]
        keys = rng.exponential(size=end - first) / self.weights[first:end]
        chosen = np.argsort(keys) if count >= len(keys) else np.argpartition(keys, count)[:count]
        rows: np.ndarray = first + np.resize(chosen, count)
        return rows


@lru_cache(maxsize=2 * len(SOURCES))  # an epoch has many steps, and 200,000 groups take 3 ms
def _permutation(seed: int, source: int, epoch: int, num_groups: int) -> np.ndarray:
    return np.random.default_rng([seed, source, epoch, 0]).permutation(num_groups)
