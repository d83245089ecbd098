"""What each command of the command line does and prints."""

import argparse
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from indexing.errors import ConfigError
from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.release.verify import verify_release
from indexing.store import open_store

from .config import load_config, to_yaml
from .progress import Progress
from .source import read_queries

if TYPE_CHECKING:
    from indexing.search import OpenRelease, Results

STAGES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "nightly": ("publish", None),
    "encode": ("encode", ("prepare", "encode")),
    "build": ("build", ("build",)),
    "validate": ("validate", ("validate",)),
    "publish": ("publish", ("publish",)),
}
"""command → (the last stage, the stages that may run)."""
BATCH_QUERIES = 1024
HITS = pa.schema(
    [
        ("query", pa.string()),
        ("rank", pa.int32()),
        ("item_id", pa.string()),
        ("score", pa.float32()),
        ("collection", pa.string()),
    ]
)


def run(arguments: argparse.Namespace) -> None:
    """nightly, or the stage of that name."""
    from .nightly import run as run_stages  # Ray loads only where it runs
    from .summary import print_summary

    if arguments.dry_run:
        Console().print(to_yaml(load_config(arguments.config, arguments.overrides)), markup=False, highlight=False)
        return plan(arguments)
    config = load_config(arguments.config, arguments.overrides)
    last_stage, allowed = STAGES[arguments.stage]
    progress = Progress(Console(), allowed)
    outcome = run_stages(config, last_stage, progress)
    print_summary(config, outcome, progress)


def plan(arguments: argparse.Namespace) -> None:
    from .plan import make_plan, print_plan

    config = load_config(arguments.config, arguments.overrides)
    print_plan(make_plan(config), Console())


def search(arguments: argparse.Namespace) -> None:
    from indexing import open_release

    if (arguments.query is None) == (arguments.queries is None) or (arguments.queries is None) != (
        arguments.out is None
    ):
        raise ConfigError("expected either QUERY, or --queries FILE and --out FILE")
    release = open_release(arguments.store, number=arguments.release, collections=arguments.collection)
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
    partial = Path(f"{arguments.out}.{uuid.uuid4().hex}.tmp")
    try:
        with progress.stage("search", len(queries)) as bar, pq.ParquetWriter(partial, HITS) as writer:
            for start in range(0, len(queries), BATCH_QUERIES):
                batch = queries[start : start + BATCH_QUERIES]
                writer.write_table(hits_table(batch, release.search(batch, k=arguments.k)))
                bar.advance(len(batch))
        partial.replace(arguments.out)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {arguments.out}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


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
    rows = [describe_release(read_release(store, number)) for number in release_numbers(store)]
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


def describe_release(release: Release) -> dict[str, Any]:
    """What `releases` shows of one; `recall_at_10` is that of the collection where it is lowest."""
    recalls = [figures["items"]["recall_at_10"] for figures in release.validation.values()]
    return {
        "number": release.number,
        "created_at": release.created_at,
        "kind": release.kind,
        "num_items": release.num_items,
        "encoder": release.encoder.digest[:12] if release.encoder else None,
        "recall_at_10": round(min(recalls), 4) if recalls else None,
        "size_bytes": release.size_bytes,
    }


def verify(arguments: argparse.Namespace) -> None:
    store = open_store(arguments.store)
    release = read_release(store, arguments.release)
    progress = Progress(Console())
    with progress.stage("verify", release.size_bytes) as bar:
        report = verify_release(store, release, on_blob=lambda blob: bar.advance(blob.size_bytes))
    print(
        f"release {release.number} is sound: {report.num_blobs} blobs, {report.size_bytes / 1e6:,.1f} MB, "
        f"{report.num_items:,} items"
    )
