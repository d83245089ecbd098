"""What changed between two releases: items, vectors, files, and what queries find. Memory is bounded by two shards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.release.manifest import Collection, Release, Shard
from indexing.release.shard import Fetch, open_graph, read_live_rows
from indexing.sharding import id_keys, key_range, range_of

DRIFT_STEPS = 20_000
"""Drift is counted in steps of 1/10,000: it runs from 0 to 2."""


@dataclass(frozen=True, kw_only=True)
class ItemCounts:
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0

    def __add__(self, other: "ItemCounts") -> "ItemCounts":
        return ItemCounts(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})


@dataclass(frozen=True, kw_only=True)
class Drift:
    """1 - cosine of an item's vectors before and after, over the items that both releases hold."""

    mean: float
    percentile_95: float
    """To 1/10,000."""


@dataclass(frozen=True, kw_only=True)
class ReleaseDiff:
    collections: dict[str, ItemCounts]
    drift: Drift | None
    """None where the vectors can't be compared: no item in common, or another dimension."""
    num_shards: int
    """Of the later release; so too below."""
    num_same_graphs: int
    size_bytes: int
    same_bytes: int
    """Of blobs that both list."""


def diff_releases(
    before: Release, after: Release, fetch: Fetch, on_shard: Callable[[int], None] | None = None
) -> ReleaseDiff:
    """Compares two releases of one store. `on_shard` is told the items of each shard of `after` that is done.

    Raises DamagedError for blobs that are not what the releases say, StoreUnavailable.
    """
    counts, histogram, total = {}, np.zeros(DRIFT_STEPS + 1, np.int64), 0.0
    pairs = {collection.name: [None, collection] for collection in after.collections}
    for collection in before.collections:
        pairs.setdefault(collection.name, [None, None])[0] = collection
    for name, (old, new) in sorted(pairs.items()):
        counts[name] = ItemCounts()
        for part in _compare(old, new, before, after, fetch):
            counts[name] += part.counts
            steps = np.clip(np.rint(part.drifts * DRIFT_STEPS / 2), 0, DRIFT_STEPS).astype(np.int64)
            histogram += np.bincount(steps, minlength=DRIFT_STEPS + 1)
            histogram[0] += part.num_same_vectors
            total += float(part.drifts.sum())
            if on_shard is not None:
                on_shard(part.counts.new + part.counts.changed + part.counts.unchanged)
    shared = before.blobs().keys() & after.blobs().keys()
    graphs = [shard.index.sha256 for collection in after.collections for shard in collection.shards]
    return ReleaseDiff(
        collections=counts,
        drift=_summarise(histogram, total) if before.dim == after.dim and histogram.sum() else None,
        num_shards=len(graphs),
        num_same_graphs=sum(sha256 in shared for sha256 in graphs),
        size_bytes=after.size_bytes,
        same_bytes=sum(blob.size_bytes for sha256, blob in after.blobs().items() if sha256 in shared),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One shard of the later release against the same range of the earlier one."""

    counts: ItemCounts
    num_same_vectors: int
    drifts: np.ndarray
    """float (num_items,) of those whose vectors were compared."""


def _compare(
    old: Collection | None, new: Collection | None, before: Release, after: Release, fetch: Fetch
) -> Iterator[_Part]:
    total = max(len(side.shards) if side else 0 for side in (old, new))
    for number in range(total):
        rows = [_rows_of_range(side, number, total, fetch) for side in (old, new)]
        found = pc.index_in(rows[1]["item_id"], value_set=rows[0]["item_id"].combine_chunks())
        is_common = pc.is_valid(found)
        earlier, later = rows[0].take(found.drop_null()), rows[1].filter(is_common)
        is_same = pc.equal(earlier["fingerprint"], later["fingerprint"]).to_numpy()
        num_same = int(is_same.sum())
        yield _Part(
            counts=ItemCounts(
                new=rows[1].num_rows - len(is_same),
                changed=len(is_same) - num_same,
                unchanged=num_same,
                gone=rows[0].num_rows - len(is_same),
            ),
            num_same_vectors=num_same,  # a fingerprint covers text and encoder
            drifts=_drifts(before, after, old, new, earlier.filter(~is_same), later.filter(~is_same), fetch),
        )


def _rows_of_range(side: Collection | None, number: int, total: int, fetch: Fetch) -> pa.Table:
    """item_id, fingerprint, label and shard of the items in range `number` of `total`."""
    keys, tables = key_range(number, total), []
    for shard in side.shards if side else ():
        mine = key_range(shard.number, len(side.shards)) if side else keys
        if mine.low <= keys.high and keys.low <= mine.high:
            rows = read_live_rows(fetch, shard, f"shard {shard.number}")
            rows = rows.append_column("shard", pa.array(np.full(rows.num_rows, shard.number)))
            tables.append(rows.filter(range_of(id_keys(rows["item_id"].to_pylist()), total) == number))
    empty = {"item_id": pa.string(), "fingerprint": pa.binary(16), "label": pa.int64(), "shard": pa.int64()}
    return pa.concat_tables(tables) if tables else pa.schema(list(empty.items())).empty_table()


def _drifts(
    before: Release,
    after: Release,
    old: Collection | None,
    new: Collection | None,
    earlier: pa.Table,
    later: pa.Table,
    fetch: Fetch,
) -> np.ndarray:
    if not earlier.num_rows or before.dim != after.dim or old is None or new is None:
        return np.empty(0)
    vectors = [
        _vectors(release.dim, side, rows, fetch)
        for release, side, rows in ((before, old, earlier), (after, new, later))
    ]
    drifts: np.ndarray = 1 - np.einsum("nd,nd->n", *vectors)
    return drifts


def _vectors(dim: int, side: Collection, rows: pa.Table, fetch: Fetch) -> np.ndarray:
    """float32 (num_rows, dim)."""
    vectors = np.empty((rows.num_rows, dim), np.float32)
    shards, labels = rows["shard"].to_numpy(), rows["label"].to_numpy()
    for number in np.unique(shards):
        shard: Shard = side.shards[number]
        mine = shards == number
        vectors[mine] = open_graph(fetch, dim, shard, f"shard {number}").vectors(labels[mine])
    return vectors


def _summarise(histogram: np.ndarray, total: float) -> Drift:
    reached = np.searchsorted(np.cumsum(histogram), 0.95 * histogram.sum())
    return Drift(mean=total / histogram.sum(), percentile_95=float(reached * 2 / DRIFT_STEPS))
