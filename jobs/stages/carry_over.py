"""What has changed in a shard since the parent release: the same graph, with tombstones and small deltas next to it.

What the graph and the deltas contain is read from the parent's own blobs, so the result depends on the parent release
and the rows of tonight, and on nothing else.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexing.errors import DamagedError
from indexing.release.commit import find_blob
from indexing.release.manifest import Delta, Shard, Tombstones
from indexing.release.shard import read_metadata, read_rows
from indexing.store import Store
from indexing.store.blobs import blob_key
from indexing.store.cache import downloads
from jobs.workspace.blobs import put_blob
from jobs.workspace.parquet import parquet_bytes
from jobs.workspace.records import BuiltGraph
from jobs.workspace.take import take_rows
from jobs.workspace.vectors import row_keys

logger = logging.getLogger(__name__)
MAX_DELTAS = 4
"""More are merged into one, so that a shard stays a handful of files."""
PutGraph = Callable[[pa.Table], BuiltGraph]
"""The graph of some items (item_id, fingerprint), which is put into the workspace."""


@dataclass(frozen=True)
class Changes:
    """Which rows of tonight the parent's labels (of its graph and its kept deltas) stand for, and which have none."""

    ends: list[int]
    """The label after the last of the graph, and of each delta that is kept."""
    rows: np.ndarray
    """int64 (num_labels,): the row of tonight that a label stands for, -1 for a tombstone."""
    new_rows: np.ndarray
    """int64, ascending: rows of tonight that no label stands for."""

    @property
    def tombstones(self) -> np.ndarray:
        """int64, ascending: the labels of tombstones."""
        return np.flatnonzero(self.rows < 0)


def plan_changes(parent: Shard, before: pa.Table, now: pa.Table, compact_at: float) -> Changes | None:
    """Compares ids and fingerprints of all the parent's labels with tonight's rows; None to rebuild from scratch.

    `compact_at` is the largest share of tombstones and deltas, of the rows that the graph was built from. A label that
    was a tombstone is live again when exactly its row has come back.
    """
    ends = np.cumsum([parent.num_base_rows, *(delta.num_rows for delta in parent.deltas or ())]).tolist()
    rows, new_rows = match_rows(before, now)
    if len(ends) > MAX_DELTAS and len(new_rows):  # all deltas become one
        ends = ends[:1]
        rows, new_rows = match_rows(before.slice(0, ends[0]), now)
    changes = Changes(ends, rows, new_rows)
    num_changes = len(changes.tombstones) + ends[-1] - ends[0] + len(new_rows)
    return changes if num_changes <= compact_at * parent.num_base_rows else None


def match_rows(before: pa.Table, now: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(int64 (num_before,): the equal row of `now` or -1; int64: rows of `now` that are not in `before`)."""
    found = pc.index_in(row_keys(now), value_set=row_keys(before))
    is_known = pc.is_valid(found).to_numpy(zero_copy_only=False)
    rows = np.full(before.num_rows, -1)
    rows[found.drop_null().to_numpy()] = np.flatnonzero(is_known)
    return rows, np.flatnonzero(~is_known)


def update_shard(
    workspace: Store,
    store: Store,
    parent: Shard,
    items: pa.Table,
    display: pa.Table,
    put_graph: PutGraph,
    compact_at: float,
) -> Shard | None:
    """The parent's shard, as `store` has it, with what has changed since; None where it has to be rebuilt from scratch.

    `items` (item_id, fingerprint) and `display` (metadata) are tonight's rows, in the label order of a new build.
    """
    with downloads(store) as fetch:
        try:
            require_blobs(store, parent)
            before, display_before = read_rows(fetch, parent, "parent"), read_metadata(fetch, parent, "parent")
        except DamagedError as error:
            logger.warning("build: the current release is damaged, so a shard is rebuilt from scratch: %s", error)
            return None
    changes = plan_changes(parent, before, items, compact_at)
    if changes is None:
        return None
    metadata = [parent.metadata, *(delta.metadata for delta in parent.deltas or ())]
    for number, (start, end) in enumerate(pairwise([0, *changes.ends])):
        rows = changes.rows[start:end]
        if not same_rows(display_before.slice(start, end - start), display, rows):
            metadata[number] = put_blob(workspace, parquet_bytes(take_or_null(display, rows)))
    kept = list((parent.deltas or ())[: len(changes.ends) - 1])
    deltas = [replace(delta, metadata=blob) for delta, blob in zip(kept, metadata[1:], strict=False)]
    if len(changes.new_rows):
        new, new_display = items.take(changes.new_rows), take_rows(display, changes.new_rows)
        deltas.append(put_delta(workspace, new, new_display, put_graph(new)))
    return replace(
        parent,
        num_items=items.num_rows,
        metadata=metadata[0],
        deltas=tuple(deltas) or None,
        tombstones=put_tombstones(workspace, changes.tombstones),
    )


def require_blobs(store: Store, shard: Shard) -> None:
    """Raises DamagedError where one is missing, or has another size or checksum. Reads none."""
    for name, blob in shard.blobs():
        if find_blob(store, blob) is None:
            where = store.describe(blob_key(blob.sha256))
            raise DamagedError(f"{name}: expected {blob.size_bytes} bytes in {where}, got others or none")


def same_rows(before: pa.Table, now: pa.Table, rows: np.ndarray) -> bool:
    """Whether the labels of `before` that still stand for a row show what that row shows now."""
    is_live = rows >= 0
    return bool(before.filter(pa.array(is_live)).equals(take_rows(now, rows[is_live])))


def take_or_null(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """The rows, and a row of nulls for each -1."""
    return take_rows(table, pa.array(rows, mask=rows < 0))


def put_delta(workspace: Store, items: pa.Table, display: pa.Table, graph: BuiltGraph) -> Delta:
    return Delta(
        num_rows=items.num_rows,
        items=put_blob(workspace, parquet_bytes(items)),
        metadata=put_blob(workspace, parquet_bytes(display)),
        index=graph.index,
        num_nodes=graph.num_nodes,
    )


def put_tombstones(workspace: Store, labels: np.ndarray) -> Tombstones | None:
    if not len(labels):
        return None
    blob = put_blob(workspace, parquet_bytes(pa.table({"label": pa.array(labels, pa.int64())})))
    return Tombstones(num_rows=len(labels), labels=blob)
