"""What releases of a simulated world hold, and what a release must be after another."""

from collections.abc import Callable
from pathlib import Path

from support.simulation import Violation
from support.tiny_release import make_release

from indexing.release.hold import find_hold, hold_of
from indexing.release.manifest import Collection, Release, Shard
from indexing.store import Store
from indexing.store.blobs import Blob, blob_of
from indexing.store.cache import download_verified

CONTENTS = [b"content %d" % number for number in range(16)]
BLOBS = [blob_of(content) for content in CONTENTS]


def release_of(number: int, contents: list[int], writer_id: str) -> Release:
    """A release whose shards have these contents, one blob each."""
    shards = tuple(
        Shard(number=position, num_items=1, index=BLOBS[content], items=BLOBS[content], metadata=BLOBS[content])
        for position, content in enumerate(contents)
    )
    collection = Collection(name="tracks", item_types=("track",), num_items=len(shards), ef_search=1, shards=shards)
    catalogue = " ".join(map(str, sorted(contents)))
    return make_release(number, collection, writer_id=writer_id, catalogue_fingerprint=catalogue)


def check_hold(release: Release, parent: Release) -> None:
    """No build publishes again what a rollback has left, and no rollback leaves it free to be published."""
    if release.kind == "build" and find_hold(parent, hold_of(release)):
        raise Violation(f"release {release.number} undoes a rollback")
    has_left = hold_of(parent)
    is_free = has_left.made_from != hold_of(release).made_from and find_hold(release, has_left) is None
    if release.kind == "rollback" and is_free:
        raise Violation(f"release {release.number} holds nothing of release {parent.number}")


def verify_bytes(store: Store, release: Release, on_blob: Callable[[Blob], None], path: Path) -> None:
    """In place of `verify_release`, which loads graphs too: the same requests to the store."""
    for blob in release.blobs().values():
        download_verified(store, blob, path)
        on_blob(blob)
