"""What each stage reports of its result: the only form in which stages pass it to each other.

A record is read and written by `Artifact` alone. Its `path` is the artifact's folder in the workspace.
"""

from dataclasses import dataclass

from indexing.release.manifest import Shard
from indexing.release.report import BuildReport
from indexing.store.blobs import Blob


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Checked rows, in buckets."""

    path: str
    catalogue_fingerprint: str
    num_buckets: int
    buckets: tuple[int, ...]
    """Those that have rows."""
    new_buckets: tuple[int, ...]
    """Those that have rows whose vectors the base does not have."""
    num_new: int
    """Such rows."""
    num_rows: int
    """Of the catalogue, quarantined ones included."""
    num_items: dict[str, int]
    """By collection."""
    quarantined: dict[str, int]
    """Reason → number of rows."""
    peak_memory_bytes: int

    @property
    def quarantine_key(self) -> str:
        return f"{self.path}/quarantine.csv"

    @property
    def num_quarantined(self) -> int:
        return sum(self.quarantined.values())

    @property
    def total_items(self) -> int:
        return sum(self.num_items.values())


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A vector for every row that the base has none of, one file for each of the new buckets."""

    path: str
    num_rows: int
    """Whose vectors the base does not have."""
    num_encoded: int
    """Distinct texts of a bucket."""
    num_tokens: int = 0
    num_truncated: int = 0
    busy_share: float | None = None
    """How much of the time between its first bucket and its last an encoder computed; None where none did."""
    peak_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """One HNSW graph in the workspace, found again by what it was built from."""

    dim: int
    index: Blob
    num_nodes: int | None
    """None where it has one for each row."""


@dataclass(frozen=True, kw_only=True)
class BuiltShard:
    """One shard whose blobs are in the workspace."""

    collection: str
    dim: int
    entry: Shard
    num_indexed: int
    """Rows whose graph was built in this run: all, or none."""
    graph: str | None = None
    """The artifact of the graph in the workspace; None where it is the parent's."""

    def __str__(self) -> str:
        return f"{self.collection}/{self.entry.number}"


@dataclass(frozen=True, kw_only=True)
class Built:
    path: str
    shards: tuple[BuiltShard, ...]
    """By collection and number."""
    peak_memory_bytes: int

    @property
    def has_changes(self) -> bool:
        """Whether a shard was carried over with deltas or tombstones, rather than built whole."""
        return any(shard.entry.deltas or shard.entry.tombstones for shard in self.shards)

    @property
    def num_indexed(self) -> int:
        return sum(shard.num_indexed for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The shards passed every gate."""

    path: str
    report: BuildReport
    peak_memory_bytes: int
