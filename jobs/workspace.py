"""Artifacts of the stages: a folder of the workspace store whose name is a fingerprint of all that went into it."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from indexing.cache import hash_file
from indexing.errors import ConfigError, DamagedError, ObjectNotFound
from indexing.release.manifest import Blob, Fetch
from indexing.sharding import KeyRange
from indexing.store import Store
from indexing.store.local import LocalStore

ROW_GROUP_ROWS = 1024


@dataclass(frozen=True)
class Artifact:
    """What a stage makes. It is complete once its marker, written last, exists: that is the whole of resume."""

    store: Store
    path: str

    def key(self, name: str) -> str:
        return f"{self.path}/{name}"

    def read_marker(self) -> dict[str, Any] | None:
        """The marker's content, or None while the artifact is not complete."""
        try:
            return json.loads(self.store.get(self.key("done.json")))
        except ObjectNotFound:
            return None
        except ValueError as error:
            raise DamagedError(
                f"{self.store.url}/{self.key('done.json')} is not JSON: {error}; delete it and run again"
            ) from error

    def require_marker(self) -> dict[str, Any]:
        """The marker's content. Raises ConfigError while the artifact is not complete."""
        marker = self.read_marker()
        if marker is None:
            raise ConfigError(
                f"{self.store.url}/{self.path} is not complete: run the stages before this one, or nightly"
            )
        return marker

    def write_marker(self, content: dict[str, Any]) -> None:
        self.store.put(self.key("done.json"), json.dumps(content, sort_keys=True, indent=1).encode())


def write_run(store: Store, key: str, table: pa.Table, *, sort_by: list[str]) -> None:
    """Puts `table`, sorted, as Parquet whose row groups can be read by key range. Same rows, same bytes."""
    table = table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in sort_by]))
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    store.put(key, parquet_bytes(table, row_group_size=ROW_GROUP_ROWS, use_dictionary=strings))


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", **options)
    return sink.getvalue().to_pybytes()


def read_run(
    store: Store,
    key: str,
    key_column: str,
    keys: KeyRange,
    *,
    collection: str | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """The rows of a run whose `key_column` lies in `keys`; only the row groups that can hold some are read."""
    where = (pc.field(key_column) >= pa.scalar(keys.low, pa.uint64())) & (
        pc.field(key_column) <= pa.scalar(keys.high, pa.uint64())
    )
    if collection is not None:
        where &= pc.field("collection") == collection
    with store.open(key) as file:
        return pq.read_table(pa.PythonFile(file, mode="r"), filters=where, columns=columns, partitioning=None)


@contextmanager
def local_copy(store: Store, key: str) -> Iterator[Path]:
    """A path of this machine that holds the object while the block runs; the object itself where the store is local."""
    if isinstance(store, LocalStore):
        yield store._path(key)
        return
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, key.rpartition("/")[2])
        store.download(key, path)
        yield path


def workspace_key(blob: Blob) -> str:
    """Where the blobs of shards lie until they are published, by content like in a store."""
    return f"shards/sha256/{blob.sha256}"


def upload_folder(store: Store, prefix: str, folder: Path, names: Iterable[str]) -> None:
    """The files `names` of `folder`, relative POSIX paths, under `prefix`."""
    for name in names:
        store.upload(f"{prefix}/{name}", folder / name, sha256=hash_file(folder / name))


def blob_of(data: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def file_blob(path: Path) -> Blob:
    return Blob(sha256=hash_file(path), size_bytes=path.stat().st_size)


def put_blob(store: Store, data: bytes) -> Blob:
    blob = blob_of(data)
    if store.head(workspace_key(blob)) is None:
        store.put(workspace_key(blob), data)
    return blob


@contextmanager
def local_blobs(store: Store) -> Iterator[Fetch]:
    """A function from a blob of the workspace to a path of this machine that holds it while the block runs.

    It raises DamagedError when the bytes are not what was built.
    """
    with ExitStack() as stack:
        paths: dict[str, Path] = {}

        def fetch(blob: Blob) -> Path:
            if blob.sha256 not in paths:
                path = stack.enter_context(local_copy(store, workspace_key(blob)))
                if hash_file(path) != blob.sha256:
                    where = store.describe(workspace_key(blob))
                    raise DamagedError(f"{where} is not what was built; delete it, run again")
                paths[blob.sha256] = path
            return paths[blob.sha256]

        yield fetch
