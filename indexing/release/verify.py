"""Re-reads a whole release from the store: every byte against its digest, every shard by loading it."""

import hashlib
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from indexing.cache import download_verified
from indexing.errors import DamagedError
from indexing.hnsw import load_index
from indexing.release.manifest import Blob, EncoderEntry, Release, Shard
from indexing.release.shard import read_items, read_rows
from indexing.sharding import id_keys, range_of
from indexing.store import Store

VERIFY_THREADS = 4
MAX_SHOWN = 3

Check = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was read and found sound."""

    num_blobs: int
    size_bytes: int
    num_items: int


def verify_release(store: Store, release: Release, on_blob: Callable[[Blob], None] | None = None) -> VerifyReport:
    """Reads every blob of the release once, past any cache, and checks digests, ids, row counts, graphs and encoder.

    Bounded by one loaded shard in memory and `VERIFY_THREADS` blobs in the folder of temporary files. `on_blob` is
    called for each blob that was read, in this thread. Raises DamagedError naming what is wrong, the first few and
    how many; StoreUnavailable.
    """
    checks = _plan_checks(release)
    problems = _encoder_problems(release.encoder)
    with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify") as pool:
        for blob, found in pool.map(
            lambda blob: _check_blob(store, blob, checks[blob.sha256]), release.blobs().values()
        ):
            problems += found
            if on_blob is not None:
                on_blob(blob)
    if problems:
        more = f" (and {len(problems) - MAX_SHOWN} more)" if len(problems) > MAX_SHOWN else ""
        raise DamagedError(f"{store.url}: release {release.number}: {'; '.join(problems[:MAX_SHOWN])}{more}")
    return VerifyReport(num_blobs=len(checks), size_bytes=release.size_bytes, num_items=release.num_items)


def _plan_checks(release: Release) -> dict[str, list[Check]]:
    """What each blob must stand besides its digest, by sha256: one blob may serve several shards."""
    checks: dict[str, list[Check]] = {sha256: [] for sha256 in release.blobs()}
    loading = threading.Lock()
    for collection in release.collections:
        for shard in collection.shards:
            where = f"collection {collection.name} shard {shard.number}"
            checks[shard.index.sha256].append(_index_check(shard, release.dim, loading))
            checks[shard.items.sha256].append(_items_check(shard, len(collection.shards), where))
            checks[shard.metadata.sha256].append(_metadata_check(shard, where))
    return checks


def _check_blob(store: Store, blob: Blob, checks: list[Check]) -> tuple[Blob, list[str]]:
    """Nothing is loaded from a blob with a wrong digest: hnswlib would crash on it."""
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        path = Path(folder, blob.sha256)
        try:
            download_verified(store, blob, path)
            for check in checks:
                check(path)
        except DamagedError as error:
            return blob, [str(error)]
    return blob, []


def _index_check(shard: Shard, dim: int, loading: threading.Lock) -> Check:
    def check(path: Path) -> None:
        with loading:  # one graph in memory at a time
            load_index(path, dim, shard.num_items)

    return check


def _items_check(shard: Shard, num_shards: int, where: str) -> Check:
    """An id must be distinct and lie in its shard's key range, so no id can be in two shards of a collection."""

    def check(path: Path) -> None:
        item_ids = read_items(path, shard.num_items, f"items of {where}")["item_id"]
        num_distinct = pc.count_distinct(item_ids).as_py()
        if num_distinct != shard.num_items:
            raise DamagedError(f"items of {where}: expected {shard.num_items} distinct ids, got {num_distinct}")
        numbers = range_of(id_keys(item_ids.to_pylist()), num_shards)
        num_strangers = int((numbers != shard.number).sum())
        if num_strangers:
            raise DamagedError(f"items of {where}: expected ids of this shard alone, got {num_strangers} of others")

    return check


def _metadata_check(shard: Shard, where: str) -> Check:
    def check(path: Path) -> None:
        read_rows(path, shard.num_items, f"metadata of {where}")

    return check


def _encoder_problems(encoder: EncoderEntry | None) -> list[str]:
    """The encoder's digest must be that of its files, as `indexing.encoder.encoder_digest` computes it."""
    if encoder is None:
        return []
    digest = hashlib.sha256()
    for file in sorted(encoder.files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.blob.sha256}\n".encode())
    if digest.hexdigest() == encoder.digest:
        return []
    return [f"encoder: expected digest {encoder.digest}, its files have {digest.hexdigest()}"]
