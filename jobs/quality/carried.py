"""What has to be measured: all, or only what is new since a release whose figures still hold."""

from dataclasses import dataclass, replace

from indexing.errors import DamagedError
from indexing.release.codec import from_plain
from indexing.release.manifest import Delta, Release, Shard
from indexing.release.report import CollectionReport, Gate
from indexing.release.shard import parts_of
from jobs.config.schema import ValidationConfig
from jobs.quality.gates import at_least
from jobs.workspace.records import Built, BuiltShard

MAX_NEW = 0.5
"""Share of a collection's items that are new, above which all of it is measured: little would be saved."""


@dataclass(frozen=True)
class ToMeasure:
    """The shards to measure, and the figures that hold for the rest of their collections."""

    shards: tuple[BuiltShard, ...]
    carried: dict[str, CollectionReport]
    """Of collections of which `shards` has only what is new. They are those of the parent release."""

    @property
    def num_items(self) -> int:
        return sum(shard.entry.num_items for shard in self.shards)


def find_new(parent: Release | None, built: Built, limits: ValidationConfig) -> ToMeasure:
    """`parent`: the release whose figures were measured with the same configuration; None where there is none.

    New is a graph that the parent does not have: of a shard that was built, or of tonight's delta. After
    `validation.full_every` releases all is measured again, tombstones and deltas of the nights between included.
    """
    shards: list[BuiltShard] = []
    carried: dict[str, CollectionReport] = {}
    for name in sorted({shard.collection for shard in built.shards}):
        of_collection = [shard for shard in built.shards if shard.collection == name]
        report = carried_report(parent, name, limits.full_every)
        new = new_parts(of_collection, parent) if parent and report else of_collection
        num_new, num_items = (sum(shard.entry.num_items for shard in found) for found in (new, of_collection))
        if report is None or num_new > MAX_NEW * num_items:
            shards += of_collection
        else:
            shards += new
            carried[name] = report
    return ToMeasure(tuple(shards), carried)


def carried_report(parent: Release | None, name: str, full_every: int) -> CollectionReport | None:
    """The collection's figures in the parent release, with the release that they were measured in; None if too old."""
    if parent is None or name not in parent.validation:
        return None
    try:
        report = from_plain(CollectionReport, parent.validation[name])
    except DamagedError:  # of another version
        return None
    measured_in = report.measured_in or parent.number
    return replace(report, measured_in=measured_in) if parent.number + 1 - measured_in < full_every else None


def new_parts(shards: list[BuiltShard], parent: Release) -> list[BuiltShard]:
    """Each graph that the parent does not have, as a shard of its own."""
    shards_before = [shard for collection in parent.collections for shard in collection.shards]
    graphs = {part.index for shard in shards_before for part, _ in parts_of(shard)}
    found = []
    for shard in shards:
        if shard.entry.index not in graphs:
            found.append(shard)
            continue
        news = [delta for delta in shard.entry.deltas or () if delta.index not in graphs]
        found += [replace(shard, entry=as_shard(delta, shard.entry.number)) for delta in news]
    return found


def as_shard(delta: Delta, number: int) -> Shard:
    assert delta.index is not None
    return Shard(
        number=number,
        num_items=delta.num_rows,
        index=delta.index,
        items=delta.items,
        metadata=delta.metadata,
        num_nodes=delta.num_nodes,
    )


def carried_gates(name: str, report: CollectionReport, limits: ValidationConfig, recall_target: float) -> list[Gate]:
    """The carried figures against the same thresholds."""
    since = f"of items, measured in release {report.measured_in}"
    return [
        at_least(f"self-match {since}", name, report.self_match, limits.min_self_match),
        at_least(f"recall@10 {since}", name, report.items.recall_at_10, recall_target),
    ]


def with_new(carried: CollectionReport, new: CollectionReport | None, num_items: int) -> CollectionReport:
    """The carried figures, with an `ef_search` that is enough for what is `new` too."""
    ef = max(carried.ef_search, new.ef_search if new else 0)
    return replace(carried, num_items=num_items, ef_search=ef)
