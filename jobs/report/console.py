"""The tables that a run ends with, from its record."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from indexing.release.report import BuildReport
from jobs.report.terminal import printable
from jobs.run import Run
from jobs.run_record import RunRecord

MAX_REASONS = 10


def print_record(run: Run, record: RunRecord) -> None:
    """Per stage: seconds, rows, rate, reused; then recall, the release and where the report is."""
    console = run.progress.console
    table = Table("stage", "seconds", "rows", "rows/s", "reused", "peak memory", box=None, header_style="bold")
    for stage in record.stages:
        num_rows = stage.num_rows or 0
        rate = "done before" if stage.seconds is None else f"{num_rows / max(stage.seconds, 1e-9):,.0f}"
        table.add_row(
            stage.name,
            "–" if stage.seconds is None else f"{stage.seconds:.1f}",
            f"{num_rows:,}",
            rate,
            stage.reused,
            f"{stage.peak_memory_bytes / 2**20:,.0f} MiB" if stage.peak_memory_bytes else "",
        )
    console.print(table, markup=False)
    if record.quarantined and record.quarantine_key:
        print_quarantine(console, record.quarantined, run.workspace.describe(record.quarantine_key))
    if record.report and record.report_key:
        print_report(console, record.report, run.workspace.describe(record.report_key))
    if record.release is not None:
        print_release(console, record, run.config.store)


def print_quarantine(console: Console, quarantined: Mapping[str, int], where: str) -> None:
    """How many rows were set aside, and why: the most frequent reasons."""
    total = sum(quarantined.values())
    console.print(f"set aside {total:,} rows: {where}", markup=False, soft_wrap=True)
    ordered = sorted(quarantined.items(), key=lambda item: (-item[1], item[0]))
    for reason, count in ordered[:MAX_REASONS]:
        console.print(f"  {count:,}  {printable(reason)}", markup=False, soft_wrap=True)
    if len(ordered) > MAX_REASONS:
        rest = sum(count for _, count in ordered[MAX_REASONS:])
        console.print(f"  {rest:,}  for {len(ordered) - MAX_REASONS} other reasons", markup=False, soft_wrap=True)


def print_report(console: Console, report: BuildReport, where: str) -> None:
    table = Table(
        "collection", "items", "recall@10", "on queries", "ef_search", "self-match", box=None, header_style="bold"
    )
    for name, figures in report.collections.items():
        table.add_row(
            printable(name),
            f"{figures.num_items:,}",
            f"{figures.items.recall_at_10:.4f}",
            f"{figures.queries.recall_at_10:.4f}" if figures.queries else "–",
            str(figures.ef_search),
            f"{figures.self_match:.4f}",
        )
    console.print()
    console.print(table, markup=False)
    console.print(f"all {len(report.gates)} gates pass: {where}", markup=False, soft_wrap=True)


def print_release(console: Console, record: RunRecord, store: str) -> None:
    if record.is_new:
        text = f"release {record.release} is published, {record.uploaded_bytes / 1e6:,.1f} MB uploaded"
    else:
        text = f"nothing has changed since release {record.release}, which stays the current one"
    console.print(f"{text}: {store}", style="bold green", markup=False, soft_wrap=True)
