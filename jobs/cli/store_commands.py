"""The commands that read a store and its releases, or change which one is current. None of them needs Ray."""

import argparse
import json
import os
import socket
import uuid
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from indexing.errors import ConfigError
from indexing.release.commit import read_release, release_numbers
from indexing.release.diff import diff_releases, overlap
from indexing.release.lease import hold_lease
from indexing.release.manifest import Release
from indexing.release.retention import PrunePlan, apply_prune, pin, pinned_numbers, plan_prune, unpin
from indexing.release.rollback import roll_back
from indexing.release.signing import check_signature, load_private_key, load_public_key
from indexing.release.verify import verify_release
from indexing.store import open_store
from indexing.store.cache import BlobCache, default_cache_folder
from indexing.store.preflight import preflight
from jobs.config.load import load_config
from jobs.config.schema import RetentionConfig
from jobs.inputs.queries import read_queries, sample_queries
from jobs.progress import Progress

if TYPE_CHECKING:
    from indexing.search.results import OpenRelease, Results


BATCH_QUERIES = 1024
DIFF_K = 10
MAX_DIFF_QUERIES = 1000
HITS = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("collection", pa.string()),
    ]
)


def search(arguments: argparse.Namespace) -> None:
    from indexing import open_release

    if (arguments.query is None) == (arguments.queries is None) or (arguments.queries is None) != (
        arguments.out is None
    ):
        raise ConfigError("expected either QUERY, or --queries FILE and --out FILE")
    keys = [Path(path) for path in arguments.trusted_key or ()]
    release = open_release(
        arguments.store, number=arguments.release, collections=arguments.collection, trusted_keys=keys
    )
    if arguments.queries:
        return search_file(release, arguments)
    table = Table("rank", "score", "collection", "title", "by", "item", box=None, header_style="bold")
    for rank, hit in enumerate(release.search(arguments.query, k=arguments.k), start=1):
        by = ", ".join(hit.metadata.get("creators") or [])
        title = hit.metadata.get("title") or ""
        table.add_row(str(rank), f"{hit.score:.3f}", hit.collection, title, by, hit.item_id)
    Console().print(table, markup=False)


def search_file(release: "OpenRelease", arguments: argparse.Namespace) -> None:
    """Writes the hits of every distinct query, a batch at a time; the file appears only when it is complete."""
    queries = read_queries(arguments.queries, None, "--queries")
    progress = Progress(Console(stderr=True))
    unfinished = Path(f"{arguments.out}.{uuid.uuid4().hex}.tmp")
    try:
        with progress.stage("search", len(queries), "queries") as bar, pq.ParquetWriter(unfinished, HITS) as writer:
            for start in range(0, len(queries), BATCH_QUERIES):
                batch = queries[start : start + BATCH_QUERIES]
                writer.write_table(hits_table(batch, release.search(batch, k=arguments.k)))
                bar.advance(len(batch))
        unfinished.replace(arguments.out)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {arguments.out}: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def hits_table(queries: list[str], results: "Results") -> pa.Table:
    num_queries, k = results.scores.shape
    return pa.table(
        {
            "query": pa.array(queries).take(pa.array(np.repeat(np.arange(num_queries), k))),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), num_queries),
            "item_id": results.item_ids.ravel(),
            "score": results.scores.ravel(),
            "collection": results.collections.ravel(),
        },
        schema=HITS,
    )


def releases(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    pinned = set(pinned_numbers(store))
    rows = [describe_release(read_release(store, number), number in pinned) for number in release_numbers(store)]
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        raise ConfigError(f"no release in {store.url}: run nightly first")
    table = Table(*(name.replace("_", " ") for name in rows[0]), box=None, header_style="bold")
    for row in rows:
        values = {**row, "size_bytes": f"{row['size_bytes'] / 1e6:,.1f} MB", "num_items": f"{row['num_items']:,}"}
        table.add_row(*("–" if value is None else str(value) for value in values.values()))
    Console().print(table, markup=False)


def describe_release(release: Release, is_pinned: bool) -> dict[str, Any]:
    """What `releases` shows of one; `recall_at_10` is that of the collection where it is lowest."""
    figures = [value for value in release.validation.values() if isinstance(value, dict)]
    recalls = [value["items"]["recall_at_10"] for value in figures if "items" in value]
    return {
        "number": release.number,
        "created_at": release.created_at,
        "kind": release.kind,
        "num_items": release.num_items,
        "encoder": release.encoder.digest[:12] if release.encoder else None,
        "recall_at_10": round(min(recalls), 4) if recalls else None,
        "size_bytes": release.size_bytes,
        "is_pinned": is_pinned,
    }


def verify(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    release = read_release(store, arguments.release)
    if arguments.trusted_key:
        check_signature(release, [load_public_key(Path(path)) for path in arguments.trusted_key], store.url)
    progress = Progress(Console())
    with progress.stage("verify", release.size_bytes, "bytes") as bar:
        report = verify_release(store, release, on_blob=lambda blob: bar.advance(blob.size_bytes))
    print(
        f"release {release.number} is sound: {report.num_blobs} blobs, {report.size_bytes / 1e6:,.1f} MB, "
        f"{report.num_items:,} items"
    )


def diff(arguments: argparse.Namespace) -> None:
    """What changed from release A to release B; with --queries also how many of the ten hits stayed the same."""
    store, cache = open_store(arguments.store), BlobCache(default_cache_folder())
    before, after = read_release(store, arguments.before), read_release(store, arguments.after)
    progress = Progress(Console(stderr=True))
    with progress.stage("diff", after.num_items, "items") as bar:
        found = diff_releases(before, after, partial(cache.fetch, store), bar.advance)
    share = None
    if arguments.queries:
        queries = sample_queries(read_queries(arguments.queries, None, "--queries"), MAX_DIFF_QUERIES)
        share = measure_overlap(arguments.store, (before.number, after.number), queries)
    if arguments.json:
        print(json.dumps({**asdict(found), "overlap_at_10": share}, indent=1))
        return
    table = Table("collection", "new", "changed", "unchanged", "gone", box=None, header_style="bold")
    for name, counts in found.collections.items():
        table.add_row(name, *(f"{count:,}" for count in (counts.new, counts.changed, counts.unchanged, counts.gone)))
    Console().print(table, markup=False)
    print(f"graphs     {found.num_same_graphs} of {found.num_shards} shards have the same")
    print(f"bytes      {found.same_bytes / 1e6:,.1f} of {found.size_bytes / 1e6:,.1f} MB are shared")
    if found.drift:
        print(f"drift      mean {found.drift.mean:.4f}, 95th percentile {found.drift.percentile_95:.4f} (1 - cosine)")
    else:
        print("drift      the vectors cannot be compared")
    if share is not None:
        print(f"overlap@10 {share:.4f} of the hits are in both")


def measure_overlap(url: str, numbers: tuple[int, int], queries: list[str]) -> float:
    """The mean share of the ten best hits that two releases have in common; each encodes the queries itself."""
    from indexing import open_release

    hits = []
    for number in numbers:
        release = open_release(url, number=number)
        hits.append(release.search(queries, k=min(DIFF_K, release.release.num_items)).item_ids)
        del release  # one in memory at a time
    return overlap(*hits)


def rollback(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    target = read_release(store, arguments.to)
    key = load_private_key(Path(arguments.signing_key)) if arguments.signing_key else None
    preflight(store)
    progress = Progress(Console())
    with (
        hold_lease(store, owner_name("rollback"), wait=False) as lease,
        progress.stage("verify", target.size_bytes, "bytes") as bar,
    ):
        release = roll_back(
            store, arguments.to, lambda blob: bar.advance(blob.size_bytes), check=lease.check, signing_key=key
        )
    print(f"release {release.number} is current and serves what release {arguments.to} did: {store.url}")


def pin_release(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    pin(store, arguments.number)
    print(f"release {arguments.number} is pinned: prune keeps all of it")


def unpin_release(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    unpin(store, arguments.number)
    print(f"release {arguments.number} is not pinned any more")


def prune(arguments: argparse.Namespace) -> None:
    """Shows what would go; deletes it with --apply, holding the lease so that no run publishes meanwhile."""
    retention = load_config(arguments.config).retention if arguments.config else RetentionConfig()
    if arguments.min_age is not None:
        retention = RetentionConfig(keep_last=retention.keep_last, min_age=arguments.min_age)
    keep_last = retention.keep_last if arguments.keep_last is None else arguments.keep_last
    store, min_age_s = open_store(arguments.store), retention.min_age_s()
    if not arguments.apply:
        plan = plan_prune(store, keep_last=keep_last, min_age_s=min_age_s)
        print_prune(plan)
        print("nothing was deleted; --apply deletes")
        return
    with hold_lease(store, owner_name("prune"), wait=False, deletes=True) as lease:
        plan = plan_prune(store, keep_last=keep_last, min_age_s=min_age_s)
        print_prune(plan)
        deleted = apply_prune(store, plan, lease.check)
    print(f"deleted {deleted} blobs and aborted {len(plan.orphans)} unfinished uploads")


def print_prune(plan: PrunePlan) -> None:
    for number, reason in plan.protected.items():
        print(f"release {number} keeps its blobs: {reason}")
    print(f"{plan.num_kept} blobs are listed by these; {plan.num_young} others are too young to go")
    print(f"to delete: {len(plan.doomed)} blobs, {plan.doomed_bytes / 1e6:,.1f} MB")
    print(f"to abort: {len(plan.orphans)} unfinished uploads")


def owner_name(command: str) -> str:
    return f"{command}, process {os.getpid()} on {socket.gethostname()}"
