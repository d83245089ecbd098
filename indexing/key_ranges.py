"""Which shard an item belongs to, and which chunk a text is encoded in: ranges of stable 64-bit hashes.

Ranges, not residues: data sorted by hash once can be read for any number of ranges without another shuffle.
"""

from dataclasses import dataclass

KEY_BITS = 64
KEY_SPACE = 1 << KEY_BITS
MAX_FILL = 1.5
"""Items of the largest shard, as a multiple of `rows_per_shard`."""
SLACK = 1.2
"""A collection that shrinks keeps its shards until it would need fewer even if it were so much larger."""


@dataclass(frozen=True)
class KeyRange:
    """Keys from `low` to `high`, both inclusive, of the unsigned 64-bit space."""

    low: int
    high: int

    def overlaps(self, other: "KeyRange") -> bool:
        return self.low <= other.high and other.low <= self.high


def num_shards(num_items: int, rows_per_shard: int, before: int | None = None) -> int:
    """Shards that a collection of `num_items` gets, at least one: none has more than `MAX_FILL` times `rows_per_shard`.

    `before`: its shards until now, which stay as many unless they get too large, or much smaller than they need to be.
    """
    fewest = _fewest_shards(num_items, rows_per_shard)
    if before is None:
        return fewest
    return min(max(before, fewest), _fewest_shards(int(num_items * SLACK), rows_per_shard))


def _fewest_shards(num_items: int, rows_per_shard: int) -> int:
    if num_items <= MAX_FILL * rows_per_shard:
        return 1
    return int(2 * num_items // (MAX_FILL * rows_per_shard))  # the larger ones have twice the keys of the smaller ones


def shard_range(number: int, total: int) -> KeyRange:
    """The keys of the `number`-th (from 0) of `total` shards, by linear hashing.

    All keys with the same first bits. With one shard more, one range is split in two, and the others stay as they are.
    Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980.
    """
    require_number(number, total)
    num_bits = total.bit_length() - 1
    num_split = total - (1 << num_bits)  # the first ranges of this many bits have been split
    prefix = number - num_split
    if number < 2 * num_split:
        num_bits, prefix = num_bits + 1, number
    width = KEY_SPACE >> num_bits
    return KeyRange(prefix * width, (prefix + 1) * width - 1)


def key_range(number: int, total: int) -> KeyRange:
    """The `number`-th (from 0) of `total` equal ranges."""
    require_number(number, total)
    return KeyRange(-(-number * KEY_SPACE // total), -(-(number + 1) * KEY_SPACE // total) - 1)


def require_number(number: int, total: int) -> None:
    if not 0 <= number < total:
        raise ValueError(f"range {number} of {total} does not exist")
