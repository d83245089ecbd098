"""What each stage says of its result."""

from dataclasses import dataclass

from indexing.release.codec import from_plain
from indexing.release.manifest import Shard
from indexing.store import Store
from jobs.workspace.artifact import Artifact


@dataclass(frozen=True)
class BuiltShard:
    """One shard whose blobs are in the workspace; plain data, so that Ray can ship it."""

    workspace: Store
    collection: str
    dim: int
    entry: Shard
    num_indexed: int
    """Rows whose graph was built in this run: all, or none."""

    def __str__(self) -> str:
        return f"{self.collection}/{self.entry.number}"


def built_shards(built: Artifact) -> list[BuiltShard]:
    return [
        BuiltShard(workspace=built.store, **{**shard, "entry": from_plain(Shard, shard["entry"])})
        for shard in built.require_marker()["shards"]
    ]
