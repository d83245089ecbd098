"""Going back: an old release's content as a new release, so that the history stays linear; and lifting its hold."""

import datetime
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from indexing.errors import ConfigError, DamagedError
from indexing.release.commit import (
    commit_release,
    missing_blobs,
    newest_valid_release,
    read_release,
    require_releases,
)
from indexing.release.hold import Hold, holds_of_rollback
from indexing.release.lease import wait_for_prune
from indexing.release.manifest import Release
from indexing.release.signing import require_key, sign_release
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
    trusted_keys: Sequence[Ed25519PublicKey] = (),
) -> Release:
    """Publishes the content of release `to` as the next release, once every byte of it has been verified.

    With `signing_key` the new release is signed, and release `to` must be signed by that key or one of `trusted_keys`.
    The current release may be damaged: then the new release holds the newest valid one before it. `on_blob` is called
    for each blob that was verified. `check` is called between blobs and before the commit, and raises when this
    process must not continue (its lease is lost).

    Raises ConfigError when there is no such release, it is the current one, or an unsigned release would follow a
    signed one, UntrustedError when it is signed by no such key, DamagedError when its file or a blob of it is damaged
    or deleted, PublishConflict when another release was published in between.
    """
    number = require_releases(store)[-1]
    if number == to:
        raise ConfigError(f"{store.url}: release {to} is the current one already, expected an earlier number")
    target = read_release(store, to, [signing_key.public_key(), *trusted_keys] if signing_key else None)
    current = newest_valid_release(store)
    require_key(current, signing_key, "--signing-key", store.url)

    def verified(blob: Blob) -> None:
        check()
        if on_blob is not None:
            on_blob(blob)

    renew_blobs(store, target, current, check)
    verify_release(store, target, verified)
    release = following(number, target, holds_of_rollback(current, target), signing_key)
    check()
    release = commit_release(store, release)
    wait_for_prune(store)
    if missing := missing_blobs(store, release):
        raise DamagedError(
            f"{store.url}: release {release.number} is published, but a prune deleted {len(missing)} of its blobs "
            "since they were verified, while this process was stopped; roll back to release "
            f"{current.number}, which is complete"
        )
    return release


def resume(
    store: Store,
    *,
    check: Callable[[], None] = lambda: None,
    signing_key: Ed25519PrivateKey | None = None,
    trusted_keys: Sequence[Ed25519PublicKey] = (),
) -> Release:
    """Publishes the current release again without its holds, so that a run may publish again what was rolled back from.

    `check` is called before the commit. Raises ConfigError where nothing is held or an unsigned release would follow a
    signed one, UntrustedError where there is a key, and neither it nor one of `trusted_keys` has signed the current
    release, DamagedError where that is damaged or lacks blobs, PublishConflict when another release came in between.
    """
    current = read_release(store, None, [signing_key.public_key(), *trusted_keys] if signing_key else None)
    if current.holds is None:
        raise ConfigError(
            f"{store.url}: release {current.number} has no hold to lift, expected a rollback that has one"
        )
    require_key(current, signing_key, "--signing-key", store.url)
    if missing := missing_blobs(store, current):
        raise DamagedError(
            f"{store.url}: expected all blobs of release {current.number}, {len(missing)} are missing or altered, such "
            f"as {missing[0]}: roll back to a complete release"
        )
    check()
    return commit_release(store, following(current.number, current, None, signing_key))


def following(
    number: int, content: Release, holds: tuple[Hold, ...] | None, signing_key: Ed25519PrivateKey | None
) -> Release:
    """What `content` serves, as the release after `number`, signed where there is a key."""
    release = replace(
        content,
        number=number + 1,
        parent=number,
        kind="rollback",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        writer_id=uuid.uuid4().hex,
        holds=holds,
        signature=None,
    )
    return sign_release(release, signing_key) if signing_key else release


def renew_blobs(store: Store, target: Release, current: Release, check: Callable[[], None]) -> None:
    """Sends again what only `target` lists: a prune that planned to delete it, and has stalled, finds it young."""
    with tempfile.TemporaryDirectory(prefix="rollback-") as folder:
        path, kept = Path(folder, "blob"), current.blobs().keys()
        for sha256, blob in target.blobs().items():
            if sha256 not in kept:
                check()
                download_verified(store, blob, path)
                store.upload(blob_key(sha256), path, sha256)
