"""A store with a history of small releases, and prunes of it, for the tests of retention."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from support.tiny_release import ReleaseMaker, make_release, send_files, unit_vectors

from indexing.release.commit import commit_release, missing_blobs, read_release
from indexing.release.manifest import Collection, Release
from indexing.release.retention import PrunePlan, apply_prune, plan_prune
from indexing.store import Store
from indexing.store.local import LocalStore

DAY_S = 86_400.0


class History:
    """Releases of one collection each, all of other vectors, in a store whose objects can be made old."""

    def __init__(self, folder: Path) -> None:
        self.store = LocalStore(folder / "store")
        self.maker = ReleaseMaker(folder)

    def collection(self, seed: int) -> Collection:
        folder = self.maker.folder / str(seed)
        folder.mkdir(exist_ok=True)
        maker = replace(self.maker, folder=folder)  # the same files, collected together
        return maker.collection("tracks", [f"t{i}" for i in range(20)], unit_vectors(20, seed=seed))

    def publish(self, seed: int) -> Release:
        """The next release, of the files of that seed alone."""
        collection, number = self.collection(seed), len(list(self.store.list("releases/"))) + 1
        release = make_release(number, collection)
        parent = read_release(self.store) if number > 1 else None
        send_files(self.store, self.files(release), parent=parent)
        return commit_release(self.store, release)

    def files(self, release: Release) -> dict[str, Path]:
        return {sha256: self.maker.files[sha256] for sha256 in release.blobs()}

    def age(self, seconds: float, prefix: str = "") -> None:
        for info in self.store.list(prefix):
            os.utime(self.store._path(info.key), (info.modified - seconds, info.modified - seconds))

    def has(self, release: Release) -> bool:
        return not missing_blobs(self.store, release)


def old_history(folder: Path) -> History:
    """Releases 1 to 4, all two days old."""
    history = History(folder)
    for seed in range(1, 5):
        history.publish(seed)
    history.age(2 * DAY_S)
    return history


def still_ours() -> None:
    """In place of `Lease.check`: a prune that does not notice what happens."""


def prune(
    store: Store, *, keep_last: int = 1, min_age_s: float = DAY_S, check: Callable[[], None] = still_ours
) -> PrunePlan:
    plan = plan_prune(store, keep_last=keep_last, min_age_s=min_age_s)
    apply_prune(store, plan, check)
    return plan


def keys_of(store: Store) -> list[str]:
    return [info.key for info in store.list()]
