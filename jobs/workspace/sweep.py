"""What of a workspace no recent run has used, and deleting it. A run that needs it after all makes it again."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from indexing.store import ObjectInfo, PendingUpload, Store
from jobs.workspace.artifact import DONE, Artifact
from jobs.workspace.blobs import BLOBS_PREFIX, workspace_key
from jobs.workspace.records import Built, BuiltGraph

FOLDERS = ("converted", "items", "vectors", "shards", "builds", "validations", "training", "beir")
"""What stages make, and `vectors` those of earlier versions; all else in a workspace stays."""
NUM_THREADS = 16
BATCH = 100
"""Deletions between two looks at the lease."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    to_delete: Sequence[ObjectInfo]
    """Markers first, so that what is left of a folder is never taken for complete."""
    to_abort: Sequence[PendingUpload]
    """Uploads that have begun long ago and never finished."""
    num_kept: int

    @property
    def to_delete_bytes(self) -> int:
        return sum(info.size_bytes for info in self.to_delete)


def plan_sweep(workspace: Store, used: Iterable[str], min_age_s: float) -> Sweep:
    """Keeps what is needed for the artifacts `used`, and every folder in which something is younger than `min_age_s`.

    Writes nothing.
    """
    now = workspace.now()
    folders: dict[str, list[ObjectInfo]] = defaultdict(list)
    for info in workspace.list():
        if info.key.partition("/")[0] in FOLDERS:
            folders[folder_of(info.key)].append(info)
    live = set(used) | {
        folder for folder, infos in folders.items() if now - max(info.modified for info in infos) <= min_age_s
    }
    live |= needed_by(workspace, live, [folder for folder in folders if is_graph(folder)])
    doomed = [info for folder, infos in folders.items() if folder not in live for info in infos]
    return Sweep(
        to_delete=sorted(doomed, key=lambda info: (not info.key.endswith(f"/{DONE}"), info.key)),
        to_abort=[upload for upload in workspace.list_uploads() if now - upload.started > min_age_s],
        num_kept=sum(map(len, folders.values())) - len(doomed),
    )


def folder_of(key: str) -> str:
    """The artifact that a file is of: two names deep; a blob is one of its own."""
    return key if key.startswith(BLOBS_PREFIX) else "/".join(key.split("/")[:2])


def is_graph(folder: str) -> bool:
    return folder.startswith("shards/") and not folder.startswith(BLOBS_PREFIX)


def needed_by(workspace: Store, live: set[str], graphs: Sequence[str]) -> set[str]:
    """Blobs of the builds in `live`, and those of `graphs` that these come from."""
    needed: set[str] = set()
    for folder in live:
        if folder.startswith("builds/") and (built := Artifact(workspace, folder, Built).read()):
            needed |= {workspace_key(blob) for shard in built.shards for _, blob in shard.entry.blobs()}
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sweep") as pool:
        found = list(pool.map(lambda folder: Artifact(workspace, folder, BuiltGraph).read(), graphs))
    blobs = needed | live
    for folder, graph in zip(graphs, found, strict=True):
        if graph and workspace_key(graph.index) in blobs:
            needed.add(folder)
        if graph and folder in live:
            needed.add(workspace_key(graph.index))
    return needed


def apply_sweep(workspace: Store, sweep: Sweep, check: Callable[[], None]) -> int:
    """Deletes what was planned; returns how many files. `check` raises when this process may not go on."""
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sweep") as pool:
        for start in range(0, len(sweep.to_delete), BATCH):
            check()
            list(pool.map(lambda info: workspace.delete(info.key), sweep.to_delete[start : start + BATCH]))
    for upload in sweep.to_abort:
        check()
        workspace.abort_upload(upload)
    return len(sweep.to_delete)


def delete_night(workspace: Store, folders: Sequence[str], blobs: Sequence[str], keep: str) -> None:
    """Deletes artifacts, their markers first, and those of the blobs that are there, but not the file `keep`."""
    keys = [info.key for folder in folders for info in workspace.list(f"{folder}/") if info.key != keep]
    keys += {info.key for info in workspace.list(BLOBS_PREFIX)}.intersection(blobs)
    markers = [key for key in keys if key.endswith(f"/{DONE}")]
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sweep") as pool:
        for group in (markers, sorted({*keys} - {*markers})):
            list(pool.map(workspace.delete, group))
