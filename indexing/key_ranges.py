"""Which shard an item belongs to, and which chunk a text is encoded in: ranges of stable 64-bit hashes.

Ranges, not residues: data sorted by hash once can be read for any number of ranges without another shuffle.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

KEY_BITS = 64
KEY_SPACE = 1 << KEY_BITS


@dataclass(frozen=True)
class KeyRange:
    """Keys from `low` to `high`, both inclusive, of the unsigned 64-bit space."""

    low: int
    high: int


def id_keys(item_ids: Iterable[str]) -> np.ndarray:
    """uint64 (num_items,): BLAKE2b-64 of each id's UTF-8 bytes, big-endian; the same on every machine, forever."""
    digests = b"".join(hashlib.blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def num_shards(num_items: int, rows_per_shard: int) -> int:
    """Shards that a collection of `num_items` gets, at least one."""
    return max(1, -(-num_items // rows_per_shard))


def key_range(number: int, total: int) -> KeyRange:
    """The `number`-th (from 0) of `total` equal ranges."""
    if not 0 <= number < total:
        raise ValueError(f"range {number} of {total} does not exist")
    return KeyRange(-(-number * KEY_SPACE // total), -(-(number + 1) * KEY_SPACE // total) - 1)


def range_of(keys: np.ndarray, total: int) -> np.ndarray:
    """int64 (num_keys,): the number of the range, of `total`, that each uint64 key falls in."""
    lows = np.array([key_range(number, total).low for number in range(total)], dtype=np.uint64)
    return np.searchsorted(lows, keys, side="right") - 1
