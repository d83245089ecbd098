"""Reads a whole release back from the store: checks every byte against its digest, and loads every shard."""

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from indexing.encoder.locate import files_digest
from indexing.errors import DamagedError
from indexing.id_keys import id_keys, is_in
from indexing.release.encoder_entry import EncoderEntry
from indexing.release.manifest import Collection, Release, Shard
from indexing.release.shard import load_shard, read_live_rows, read_metadata
from indexing.store import Store
from indexing.store.blobs import Blob, Fetch
from indexing.store.cache import download_verified

VERIFY_THREADS = 4
MAX_SHOWN = 3

Check = Callable[[Fetch], None]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What was read and found valid."""

    num_blobs: int
    size_bytes: int
    num_items: int


def verify_release(store: Store, release: Release, on_blob: Callable[[Blob], None] | None = None) -> VerifyReport:
    """Reads every blob of the release, past any cache, and checks digests, ids, row counts, graphs and encoder.

    Bounded by one loaded shard in memory and the files of `VERIFY_THREADS` shards in the folder of temporary files.
    `on_blob` is called for each blob that was read, in this thread. Raises DamagedError naming what is wrong, the first
    few and how many; StoreUnavailable.
    """
    loading = threading.Lock()  # one graph in memory at a time
    checks: list[tuple[list[Blob], Check]] = []
    for collection in release.collections:
        for shard in collection.shards:
            check = partial(_check_shard, release, collection, shard, loading)
            checks.append(([blob for _, blob in shard.blobs()], check))
    in_shards = {blob.sha256 for blobs, _ in checks for blob in blobs}
    checks += [([blob], lambda fetch: None) for sha256, blob in release.blobs().items() if sha256 not in in_shards]
    problems, seen = _encoder_problems(release.encoder), set()
    with ThreadPoolExecutor(VERIFY_THREADS, thread_name_prefix="verify") as pool:
        for (blobs, _), found in zip(checks, pool.map(lambda args: _check_blobs(store, *args), checks), strict=True):
            problems += found
            for blob in blobs:
                if on_blob is not None and blob.sha256 not in seen:
                    on_blob(blob)
                seen.add(blob.sha256)
    if problems:
        more = f" (and {len(problems) - MAX_SHOWN} more)" if len(problems) > MAX_SHOWN else ""
        raise DamagedError(f"{store.url}: release {release.number}: {'; '.join(problems[:MAX_SHOWN])}{more}")
    return VerifyReport(num_blobs=len(seen), size_bytes=release.size_bytes, num_items=release.num_items)


def _check_blobs(store: Store, blobs: list[Blob], check: Check) -> list[str]:
    """What is wrong with files that belong together. Nothing is loaded from a blob with a wrong digest: hnswlib may
    crash on it.
    """
    problems = []
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        for blob in blobs:
            try:
                download_verified(store, blob, Path(folder, blob.sha256))
            except DamagedError as error:
                problems.append(str(error))
        if not problems:
            try:
                check(lambda blob: Path(folder, blob.sha256))
            except DamagedError as error:
                problems.append(str(error))
    return problems


def _check_shard(release: Release, collection: Collection, shard: Shard, loading: threading.Lock, fetch: Fetch) -> None:
    """An id must be distinct and lie in its shard's key range, so no id can be in two shards of a collection."""
    where = f"collection {collection.name} shard {shard.number}"
    with loading:
        load_shard(fetch, release.dim, collection, shard)
    item_ids = read_live_rows(fetch, shard, where)["item_id"]
    num_distinct = pc.count_distinct(item_ids).as_py()
    if num_distinct != shard.num_items:
        raise DamagedError(f"items of {where}: expected {shard.num_items} distinct ids, got {num_distinct}")
    is_own = is_in(id_keys(item_ids.to_pylist()), release.keys_of(collection, shard))
    num_foreign = int((~is_own).sum())
    if num_foreign:
        raise DamagedError(f"items of {where}: expected only ids of this shard, got {num_foreign} of others")
    read_metadata(fetch, shard, where)


def _encoder_problems(encoder: EncoderEntry | None) -> list[str]:
    """The encoder's digest must be that of its files."""
    if encoder is None:
        return []
    digest = files_digest((file.path, file.blob.sha256) for file in encoder.files)
    return [] if digest == encoder.digest else [f"encoder: expected digest {encoder.digest}, its files have {digest}"]
