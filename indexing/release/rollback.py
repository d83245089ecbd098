"""Going back: an old release's content as a new release, so that the history stays one line."""

import datetime
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from indexing.errors import ConfigError, DamagedError
from indexing.release.commit import commit_release, missing_blobs, read_release
from indexing.release.manifest import Release
from indexing.release.signing import sign_release
from indexing.release.verify import verify_release
from indexing.store import Store
from indexing.store.blobs import Blob, blob_key
from indexing.store.cache import download_verified


def roll_back(
    store: Store,
    to: int,
    on_blob: Callable[[Blob], None] | None = None,
    *,
    signing_key: Ed25519PrivateKey | None = None,
) -> Release:
    """Publishes the content of release `to` as the next release, once every byte of it has been verified.

    Without `signing_key` the new release is unsigned, since a signature covers the number too.

    Raises ConfigError when there is no such release or it is the current one, DamagedError when a blob of it is gone or
    altered, PublishConflict when another release came in between.
    """
    current, target = read_release(store), read_release(store, to)
    if current.number == to:
        raise ConfigError(f"{store.url}: release {to} is the current one already, expected an earlier number")
    renew_blobs(store, target, current)
    verify_release(store, target, on_blob)
    release = replace(
        target,
        number=current.number + 1,
        parent=current.number,
        kind="rollback",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        writer_id=uuid.uuid4().hex,
        signature=None,
    )
    if signing_key:
        release = sign_release(release, signing_key)
    commit_release(store, release)
    if missing := missing_blobs(store, release):
        raise DamagedError(
            f"{store.url}: release {release.number} is published, but a prune that had stalled took {len(missing)} of "
            f"its blobs since they were verified; roll back to release {current.number}, which is whole"
        )
    return release


def renew_blobs(store: Store, target: Release, current: Release) -> None:
    """Sends anew what only `target` lists: a prune that planned to delete it, and has stalled, finds it young."""
    with tempfile.TemporaryDirectory(prefix="rollback-") as folder:
        path = Path(folder, "blob")
        for sha256, blob in target.blobs().items():
            if sha256 not in current.blobs():
                download_verified(store, blob, path)
                store.upload(blob_key(sha256), path, sha256)
