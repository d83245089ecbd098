"""The table that a run ends with."""

from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.config.schema import Config
from jobs.nightly import Outcome
from jobs.progress import Progress
from jobs.workspace.records import built_shards


def print_summary(config: Config, outcome: Outcome, progress: Progress) -> None:
    """Per stage: seconds, rows, rate, reused; then recall, the release and where the report is."""
    console = progress.console
    table = Table("stage", "seconds", "rows", "rows/s", "reused", "peak memory", box=None, header_style="bold")
    for name, figures in stage_figures(outcome, progress).items():
        seconds = progress.seconds.get(name)
        table.add_row(
            name,
            "–" if seconds is None else f"{seconds:.1f}",
            f"{figures['rows']:,}",
            "done before" if seconds is None else f"{figures['rows'] / max(seconds, 1e-9):,.0f}",
            figures.get("reused", ""),
            f"{figures['peak_memory_bytes'] / 2**20:,.0f} MiB" if figures.get("peak_memory_bytes") else "",
        )
    console.print(table, markup=False)
    if quarantined := outcome.prepared.require_marker()["quarantined"]:
        where = outcome.prepared.store.describe(outcome.prepared.key("quarantine"))
        console.print(f"quarantined {sum(quarantined.values()):,} rows: {where}", markup=False, soft_wrap=True)
    if outcome.validated:
        print_recall(console, outcome)
    if outcome.published:
        print_release(console, config, outcome)


def stage_figures(outcome: Outcome, progress: Progress) -> dict[str, dict[str, Any]]:
    rows, vectors = outcome.prepared.require_marker(), outcome.encoded.require_marker()
    num_items = sum(rows["num_items"].values())
    num_encoded = vectors["num_encoded"] if "encode" in progress.seconds else 0
    figures: dict[str, dict[str, Any]] = {
        "prepare": {"rows": rows["num_rows"], "peak_memory_bytes": rows["peak_memory_bytes"]},
        "encode": {
            "rows": num_encoded,
            "reused": f"{num_items - num_encoded:,} vectors",
            "peak_memory_bytes": vectors.get("peak_memory_bytes"),
        },
    }
    if outcome.built:
        shards = built_shards(outcome.built)
        num_indexed = sum(shard.num_indexed for shard in shards) if "build" in progress.seconds else 0
        num_reused = sum(not shard.num_indexed or not num_indexed for shard in shards)
        num_changed = sum(bool(shard.entry.deltas or shard.entry.tombstones) for shard in shards)
        figures["build"] = {
            "rows": num_indexed,
            "reused": f"{num_reused} of {len(shards)} graphs" + (f", {num_changed} with deltas" if num_changed else ""),
            "peak_memory_bytes": outcome.built.require_marker()["peak_memory_bytes"],
        }
    if outcome.validated:
        figures["validate"] = {
            "rows": num_items,
            "peak_memory_bytes": outcome.validated.require_marker()["peak_memory_bytes"],
        }
    if outcome.published:
        uploads = outcome.published.uploads
        figures["publish"] = {"rows": num_items, "reused": f"{uploads.reused_bytes / 1e6:,.1f} MB"}
    return figures


def print_recall(console: Console, outcome: Outcome) -> None:
    assert outcome.validated is not None
    report = outcome.validated.require_marker()["report"]
    table = Table(
        "collection", "items", "recall@10", "on queries", "ef_search", "self-match", box=None, header_style="bold"
    )
    for name, figures in report["collections"].items():
        on_queries = figures["queries"]["recall_at_10"] if "queries" in figures else None
        table.add_row(
            name,
            f"{figures['num_items']:,}",
            f"{figures['items']['recall_at_10']:.4f}",
            "–" if on_queries is None else f"{on_queries:.4f}",
            str(figures["ef_search"]),
            f"{figures['self_match']:.4f}",
        )
    console.print()
    console.print(table, markup=False)
    where = outcome.validated.store.describe(outcome.validated.key("done.json"))
    console.print(f"all {len(report['gates'])} gates hold: {where}", markup=False, soft_wrap=True)


def print_release(console: Console, config: Config, outcome: Outcome) -> None:
    assert outcome.published is not None
    release, uploads = outcome.published.release, outcome.published.uploads
    if outcome.published.is_new:
        text = f"release {release.number} is published, {uploads.uploaded_bytes / 1e6:,.1f} MB uploaded"
    else:
        text = f"nothing has changed since release {release.number}, which stays the current one"
    console.print(f"{text}: {config.store}", style="bold green", markup=False, soft_wrap=True)
