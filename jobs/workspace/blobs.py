"""Blobs that are kept in the workspace until they are published, and local copies of them."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from indexing.errors import DamagedError, ObjectNotFound
from indexing.store import Store
from indexing.store.blobs import Blob, Fetch, blob_key, blob_of, hash_file
from indexing.store.cache import downloads
from indexing.store.local import LocalStore


@contextmanager
def local_copy(store: Store, key: str) -> Iterator[Path]:
    """A local path that holds the object while the block runs; the object itself where the store is local."""
    if isinstance(store, LocalStore):
        if store.head(key) is None:
            raise ObjectNotFound(f"expected {store.describe(key)} to exist, found nothing there")
        yield store._path(key)
        return
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, key.rpartition("/")[2])
        store.download(key, path)
        yield path


BLOBS_PREFIX = "shards/sha256/"


def workspace_key(blob: Blob) -> str:
    """Where the blobs of shards are kept until they are published, named by content as in a store."""
    return f"{BLOBS_PREFIX}{blob.sha256}"


def put_blob(store: Store, data: bytes) -> Blob:
    blob = blob_of(data)
    if store.head(workspace_key(blob)) is None:
        store.put(workspace_key(blob), data)
    return blob


@contextmanager
def local_blobs(store: Store) -> Iterator[Fetch]:
    """A function from a blob of the workspace to a local path that holds it while the block runs.

    It raises DamagedError when the bytes are not what was built.
    """
    with ExitStack() as stack:
        paths: dict[str, Path] = {}

        def fetch(blob: Blob) -> Path:
            if blob.sha256 not in paths:
                path = stack.enter_context(local_copy(store, workspace_key(blob)))
                if hash_file(path) != blob.sha256:
                    where = store.describe(workspace_key(blob))
                    raise DamagedError(f"{where} is not what was built; delete it and run again")
                paths[blob.sha256] = path
            return paths[blob.sha256]

        yield fetch


@contextmanager
def built_blobs(workspace: Store, store: Store) -> Iterator[Fetch]:
    """As `local_blobs`, for blobs that were built tonight, and for those of a release in `store` that were kept.

    Raises ObjectNotFound for a blob that neither has.
    """
    with local_blobs(workspace) as fetch_built, downloads(store) as fetch_published:

        def fetch(blob: Blob) -> Path:
            is_kept = workspace.head(workspace_key(blob)) is None and store.head(blob_key(blob.sha256)) is not None
            return fetch_published(blob) if is_kept else fetch_built(blob)

        yield fetch
