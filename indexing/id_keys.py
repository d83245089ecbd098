"""The stable 64-bit hash of an item's id, and which range a hash is in."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from indexing.key_ranges import KeyRange


def id_keys(item_ids: Iterable[str]) -> np.ndarray:
    """uint64 (num_items,): BLAKE2b-64 of each id's UTF-8 bytes, big-endian; the same on every machine, forever."""
    digests = b"".join(hashlib.blake2b(item_id.encode(), digest_size=8).digest() for item_id in item_ids)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def is_in(keys: np.ndarray, keys_in: KeyRange) -> np.ndarray:
    """bool (num_keys,): which of the uint64 keys are in the range."""
    is_inside: np.ndarray = (keys >= np.uint64(keys_in.low)) & (keys <= np.uint64(keys_in.high))
    return is_inside


def range_of(keys: np.ndarray, ranges: Sequence[KeyRange]) -> np.ndarray:
    """int64 (num_keys,): the number of the range that each uint64 key is in; they are ascending and cover all keys."""
    lows = np.array([keys_in.low for keys_in in ranges], dtype=np.uint64)
    return np.searchsorted(lows, keys, side="right") - 1
