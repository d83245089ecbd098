"""The command that compares two releases. It needs no Ray."""

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from indexing.dense.params import K
from indexing.release.commit import read_release
from indexing.store import open_store
from indexing.store.cache import BlobCache, default_cache_folder
from jobs.cli.options import AsJson, Store, whole_number
from jobs.cli.output import output_of, print_json
from jobs.report.terminal import print_table

if TYPE_CHECKING:
    from indexing.release.diff import ReleaseDiff

MAX_DIFF_QUERIES = 1000
Before = Annotated[int, typer.Argument(metavar="A", parser=whole_number, help="The number of the earlier release.")]
After = Annotated[int, typer.Argument(metavar="B", parser=whole_number, help="The number of the later release.")]
Queries = Annotated[
    str | None,
    typer.Option(
        "--queries",
        metavar="PARQUET",
        help="Measure overlap@10 on up to 1,000 distinct values of the column `query`.",
    ),
]


def diff(
    context: typer.Context,
    store: Store,
    before: Before,
    after: After,
    queries: Queries = None,
    as_json: AsJson = False,
) -> None:
    """Compare two releases: items, vectors, files, and what queries find."""
    from indexing.release.diff import diff_releases

    opened, cache = open_store(store), BlobCache(default_cache_folder())
    earlier, later = read_release(opened, before), read_release(opened, after)
    with output_of(context).progress().stage("diff", later.num_items, "items") as bar:
        found = diff_releases(earlier, later, partial(cache.fetch, opened), bar.advance)
    share = measure_overlap(store, (before, after), queries) if queries else None
    if as_json:
        print_json({**asdict(found), "overlap_at_10": share})
    else:
        print_diff(found, share)


def print_diff(found: "ReleaseDiff", share: float | None) -> None:
    rows = [
        (name, *(f"{count:,}" for count in (counts.new, counts.changed, counts.unchanged, counts.deleted)))
        for name, counts in found.collections.items()
    ]
    print_table(("collection", "new", "changed", "unchanged", "deleted"), rows)
    print(f"graphs     {found.num_same_graphs} of {found.num_shards} unchanged")
    print(f"bytes      {found.same_bytes / 1e6:,.1f} of {found.size_bytes / 1e6:,.1f} MB are shared")
    if found.drift:
        print(f"drift      mean {found.drift.mean:.4f}, 95th percentile {found.drift.percentile_95:.4f} (1 - cosine)")
    else:
        print("drift      the vectors cannot be compared")
    if share is not None:
        print(f"overlap@10 {share:.4f} of the hits are in both")


def measure_overlap(url: str, numbers: tuple[int, int], path: str) -> float:
    """The mean share of the ten best hits that two releases have in common; each encodes the queries itself."""
    from indexing import open_release
    from indexing.release.diff import overlap
    from jobs.inputs.queries import read_queries, sample_queries

    queries = sample_queries(read_queries(path, None, "--queries"), MAX_DIFF_QUERIES)
    hits = []
    for number in numbers:
        release = open_release(url, number=number)
        hits.append(release.search(queries, k=min(K, release.release.num_items)).item_ids)
        del release  # one in memory at a time
    return overlap(*hits)
