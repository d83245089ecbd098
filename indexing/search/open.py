"""Opens a release: every file fetched and checked, every shard loaded."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from indexing.encoder import can_encode
from indexing.release.commit import newest_valid_release, read_release
from indexing.release.shard import load_shard
from indexing.release.signing import load_trusted_keys
from indexing.search.held_encoder import hold_encoder
from indexing.search.queries import choose_collections
from indexing.search.results import OpenRelease
from indexing.store import S3Settings, open_store
from indexing.store.cache import BlobCache, default_cache_folder, retry_vanished

OPEN_THREADS = 4


def open_release(
    url: str,
    number: int | None = None,
    cache_dir: Path | None = None,
    s3: S3Settings | None = None,
    collections: Sequence[str] | None = None,
    trusted_keys: Sequence[Path] | None = None,
    cache_bytes: int = 50 << 30,
    device: str = "auto",
) -> "OpenRelease":
    """Loads a release, the newest valid one by default, and only the named collections of it, all by default.

    Every file is checked against its digest before it is used; with `trusted_keys`, Ed25519 public keys in PEM files,
    a release that none of them has signed is refused. Without a `number`, newer releases with damaged files are logged
    as warnings, and those that no trusted key has signed as errors; with a `number`, both raise.

    `cache_dir` keeps at most `cache_bytes` of the files used last; an open release stays open when they are deleted.
    Queries are encoded on `device` (auto, cpu, cuda or cuda:N), in the number format that the release was validated in.

    Raises ConfigError for no such store, release or collection and for an empty list of keys, DamagedError for bytes
    that are not what the release says, UntrustedError for a release that no trusted key has signed, StoreUnavailable.
    """
    store, keys = open_store(url, s3), load_trusted_keys(trusted_keys)
    release = newest_valid_release(store, keys) if number is None else read_release(store, number, keys)
    wanted = choose_collections(collections, [collection.name for collection in release.collections])
    cache = BlobCache(cache_dir or default_cache_folder())
    pairs = [(c, shard) for c in release.collections if c.name in wanted for shard in c.shards]
    fetch = partial(cache.fetch, store)
    with ThreadPoolExecutor(OPEN_THREADS) as pool:
        parts = list(pool.map(lambda pair: retry_vanished(lambda: load_shard(fetch, release.dim, *pair)), pairs))
    entry = release.encoder if can_encode() else None
    encoder = retry_vanished(lambda: hold_encoder(fetch, entry, device)) if entry else None
    cache.trim(cache_bytes)
    return OpenRelease(release, parts, encoder, store.url)
