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
from indexing.release.lease import wait_for_prune
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
    check: Callable[[], None] = lambda: None,
    signing_key: Ed25519PrivateKey | None = None,
) -> Release:
    """Publishes the content of release `to` as the next release, once every byte of it has been verified.

    Without `signing_key` the new release is unsigned, since a signature covers the number too. `on_blob` is called for
    each blob that was verified; `check` between blobs and before the commit, and raises when this process may not go on
    (its lease is lost).

    Raises ConfigError when there is no such release or it is the current one, DamagedError when a blob of it is gone or
    altered, PublishConflict when another release came in between.
    """
    current, target = read_release(store), read_release(store, to)
    if current.number == to:
        raise ConfigError(f"{store.url}: release {to} is the current one already, expected an earlier number")

    def verified(blob: Blob) -> None:
        check()
        if on_blob is not None:
            on_blob(blob)

    renew_blobs(store, target, current, check)
    verify_release(store, target, verified)
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
    check()
    commit_release(store, release)
    wait_for_prune(store)
    if missing := missing_blobs(store, release):
        raise DamagedError(
            f"{store.url}: release {release.number} is published, but a prune deleted {len(missing)} of its blobs "
            "since they were verified, while this process was stopped; roll back to release "
            f"{current.number}, which is whole"
        )
    return release


def renew_blobs(store: Store, target: Release, current: Release, check: Callable[[], None]) -> None:
    """Sends anew what only `target` lists: a prune that planned to delete it, and has stalled, finds it young."""
    with tempfile.TemporaryDirectory(prefix="rollback-") as folder:
        path, kept = Path(folder, "blob"), current.blobs().keys()
        for sha256, blob in target.blobs().items():
            if sha256 not in kept:
                check()
                download_verified(store, blob, path)
                store.upload(blob_key(sha256), path, sha256)
