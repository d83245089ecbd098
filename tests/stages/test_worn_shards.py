"""Which shards are rebuilt before they must be, so that no night has to rebuild all."""

from typing import Any

from indexing.release.manifest import Shard, Tombstones
from indexing.store.blobs import Blob
from jobs.stages.build import ShardTask, worn_shards
from jobs.workspace.records import BuiltShard


def test_rebuilds_are_spread_over_the_nights_worst_shard_first() -> None:
    blob = Blob(sha256="a" * 64, size_bytes=1)

    def shard(number: int, num_deleted: int) -> tuple[ShardTask, BuiltShard]:
        tombstones = Tombstones(num_rows=num_deleted, labels=blob) if num_deleted else None
        entry = Shard(
            number=number, num_items=100 - num_deleted, index=blob, items=blob, metadata=blob, tombstones=tombstones
        )
        task: Any = f"task {number}"
        return task, BuiltShard(collection="tracks", dim=4, entry=entry, num_indexed=0)

    built = [shard(number, num_deleted) for number, num_deleted in enumerate([0, 12, 20, 16, 15, 14, 0, 0])]
    assert worn_shards(built, 0.25, 0.3) == ["task 2", "task 3"]
    assert worn_shards(built, 0.25, 1) == ["task 2", "task 3", "task 4", "task 5"]
    assert worn_shards(built, 0.25, 0.05) == []
