"""Opens a release: every file fetched and checked, every shard loaded."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from indexing.release.commit import read_release
from indexing.release.shard import load_shard
from indexing.release.signing import check_signature, load_public_key
from indexing.search.queries import _choose
from indexing.search.results import OpenRelease
from indexing.store import S3Settings, open_store
from indexing.store.cache import BlobCache, default_cache_folder

OPEN_THREADS = 4


def open_release(
    url: str,
    number: int | None = None,
    cache_dir: Path | None = None,
    s3: S3Settings | None = None,
    collections: Sequence[str] | None = None,
    trusted_keys: Sequence[Path] = (),
    cache_bytes: int = 50 << 30,
) -> "OpenRelease":
    """Loads a release, the current one by default, and only the named collections of it, all by default.

    Every file is checked against its digest before it is used; with `trusted_keys`, Ed25519 public keys in PEM files, a
    release that none of them has signed is refused. `cache_dir` keeps at most `cache_bytes` of files, the latest used.
    Raises ConfigError for no such store, release or collection, DamagedError for bytes that are not what the release
    says, StoreUnavailable.
    """
    store = open_store(url, s3)
    release = read_release(store, number)
    if trusted_keys:
        check_signature(release, [load_public_key(path) for path in trusted_keys], store.url)
    wanted = _choose(collections, [collection.name for collection in release.collections])
    cache = BlobCache(cache_dir or default_cache_folder())
    pairs = [(c, shard) for c in release.collections if c.name in wanted for shard in c.shards]
    with ThreadPoolExecutor(OPEN_THREADS) as pool:
        parts = list(pool.map(lambda pair: load_shard(partial(cache.fetch, store), release.dim, *pair), pairs))
    cache.trim(cache_bytes)
    return OpenRelease(release, parts, store, cache)
