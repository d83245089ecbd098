"""Going back: an old release's content as a new release, so that the history stays one line."""

import datetime
import uuid
from collections.abc import Callable
from dataclasses import replace

from indexing.errors import ConfigError
from indexing.release.commit import commit_release, read_release
from indexing.release.manifest import Blob, Release
from indexing.release.signing import Ed25519PrivateKey, sign_release
from indexing.release.verify import verify_release
from indexing.store import Store


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
    return release
