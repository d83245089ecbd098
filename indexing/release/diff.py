"""How two releases differ: items, vectors, files, hits."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.id_keys import id_keys, is_in
from indexing.key_ranges import KeyRange
from indexing.release.manifest import Collection, Release, Shard, keys_of_shard
from indexing.release.shard import open_graph, read_live_rows
from indexing.store.blobs import Fetch


def overlap(before: np.ndarray, after: np.ndarray) -> float:
    """The mean share of `after`'s hits that `before` has too: ids as str objects, (num_queries, at most k) both."""
    return float(np.mean([len(set(old) & set(new)) / len(new) for old, new in zip(before, after, strict=True)]))


DRIFT_STEP = 1e-4
"""Drift is counted in steps of this size, so that counts take little memory however many items there are."""


@dataclass(frozen=True, kw_only=True)
class ItemCounts:
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0

    def __add__(self, other: "ItemCounts") -> "ItemCounts":
        return ItemCounts(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})


@dataclass(frozen=True, kw_only=True)
class Drift:
    """1 - cosine of an item's vectors before and after, over the items that both releases hold; to 1/10,000."""

    mean: float
    percentile_95: float


@dataclass(frozen=True, kw_only=True)
class ReleaseDiff:
    collections: dict[str, ItemCounts]
    drift: Drift | None
    """None where the vectors can't be compared: no item in common, or another dimension."""
    num_shards: int
    """Of the later release, like the sizes below."""
    num_same_graphs: int
    size_bytes: int
    same_bytes: int
    """Of blobs that both releases list."""


@dataclass(frozen=True)
class Side:
    """The shards of one collection of a release, and the id keys that each has."""

    name: str
    shards: list[tuple[Shard, KeyRange]]


@dataclass(frozen=True, kw_only=True)
class Range:
    """The items of one collection whose ids fall in `keys`, in both releases."""

    name: str
    before: Side | None
    after: Side | None
    keys: KeyRange


@dataclass(frozen=True, kw_only=True)
class RangeDiff:
    counts: ItemCounts
    drifts: Counter[int]
    """Drift in steps → number of items; empty where dimensions differ."""


def diff_releases(
    before: Release, after: Release, fetch: Fetch, on_range: Callable[[int], None] | None = None
) -> ReleaseDiff:
    """Compares two releases of one store. `on_range` is called with the number of `after`'s items in each range done.

    Raises DamagedError for blobs that are not what the releases say, StoreUnavailable.
    """
    ranges = plan_ranges(*(sides_of(release.collections, release.format_version) for release in (before, after)))
    parts = []
    for each in ranges:
        part = diff_range(each, before.dim, after.dim, fetch)
        parts.append(part)
        if on_range is not None:
            on_range(part.counts.new + part.counts.changed + part.counts.unchanged)
    counts = {each.name: ItemCounts() for each in ranges}
    for each, part in zip(ranges, parts, strict=True):
        counts[each.name] += part.counts
    shared = before.blobs().keys() & after.blobs().keys()
    graphs = [shard.index.sha256 for collection in after.collections for shard in collection.shards]
    return ReleaseDiff(
        collections=counts,
        drift=sum_drift(parts),
        num_shards=len(graphs),
        num_same_graphs=sum(sha256 in shared for sha256 in graphs),
        size_bytes=after.size_bytes,
        same_bytes=sum(blob.size_bytes for sha256, blob in after.blobs().items() if sha256 in shared),
    )


def plan_ranges(before: Sequence[Side], after: Sequence[Side]) -> list[Range]:
    """The ranges of each collection's shards, in that of the two releases that has more."""
    sides = [{side.name: side for side in release} for release in (before, after)]
    ranges = []
    for name in sorted(sides[0].keys() | sides[1].keys()):
        old, new = (by_name.get(name) for by_name in sides)
        finer = max((side for side in (new, old) if side), key=lambda side: len(side.shards))
        ranges += [Range(name=name, before=old, after=new, keys=keys) for _, keys in finer.shards]
    return ranges


def sides_of(collections: Sequence[Collection], format_version: int) -> list[Side]:
    return [
        Side(each.name, [(shard, keys_of_shard(format_version, each, shard)) for shard in each.shards])
        for each in collections
    ]


def diff_range(each: Range, dim_before: int, dim_after: int, fetch: Fetch) -> RangeDiff:
    """Counts items by fingerprint, which covers text and encoder; loads graphs only where some have changed."""
    old, new = (_rows_of_range(side, each, fetch) for side in (each.before, each.after))
    found = pc.index_in(new["item_id"], value_set=old["item_id"].combine_chunks())
    earlier, later = old.take(found.drop_null()), new.filter(pc.is_valid(found))
    is_changed = pc.not_equal(earlier["fingerprint"], later["fingerprint"])
    earlier, later = earlier.filter(is_changed), later.filter(is_changed)
    num_common = len(is_changed)
    drifts: Counter[int] = Counter()
    if dim_before == dim_after and num_common:
        vectors = [
            _vectors(dim_after, side, rows, fetch) for side, rows in ((each.before, earlier), (each.after, later))
        ]
        steps = np.rint(np.maximum(1 - np.einsum("nd,nd->n", *vectors), 0) / DRIFT_STEP).astype(np.int64)
        drifts.update(steps.tolist())
        drifts[0] += num_common - later.num_rows
    return RangeDiff(
        counts=ItemCounts(
            new=new.num_rows - num_common,
            changed=later.num_rows,
            unchanged=num_common - later.num_rows,
            deleted=old.num_rows - num_common,
        ),
        drifts=drifts,
    )


def sum_drift(parts: Iterable[RangeDiff]) -> Drift | None:
    """None where the vectors of no item can be compared."""
    drifts: Counter[int] = Counter()
    for part in parts:
        drifts.update(part.drifts)
    if not drifts.total():
        return None
    steps = np.array(sorted(drifts))
    counts = np.array([drifts[step] for step in steps.tolist()])
    reached = np.searchsorted(np.cumsum(counts), 0.95 * counts.sum())
    return Drift(
        mean=float(steps @ counts / counts.sum()) * DRIFT_STEP, percentile_95=float(steps[reached]) * DRIFT_STEP
    )


def _rows_of_range(side: Side | None, each: Range, fetch: Fetch) -> pa.Table:
    """item_id, fingerprint, label and shard of the live items."""
    columns = {"item_id": pa.string(), "fingerprint": pa.binary(16), "label": pa.int64(), "shard": pa.int64()}
    tables = [pa.schema(list(columns.items())).empty_table()]
    if side is None:
        return tables[0]
    for shard, mine in side.shards:
        if mine.overlaps(each.keys):
            rows = read_live_rows(fetch, shard, f"collection {side.name} shard {shard.number}")
            rows = rows.append_column("shard", pa.array(np.full(rows.num_rows, shard.number)))
            tables.append(rows.filter(pa.array(is_in(id_keys(rows["item_id"].to_pylist()), each.keys))))
    return pa.concat_tables(tables)


def _vectors(dim: int, side: Side | None, rows: pa.Table, fetch: Fetch) -> np.ndarray:
    """float32 (num_rows, dim)."""
    vectors = np.empty((rows.num_rows, dim), np.float32)
    if side is None:
        return vectors
    shards, labels = rows["shard"].to_numpy(), rows["label"].to_numpy()
    for number in np.unique(shards):
        graph = open_graph(fetch, dim, side.shards[number][0], f"collection {side.name} shard {number}")
        vectors[shards == number] = graph.vectors(labels[shards == number])
    return vectors
