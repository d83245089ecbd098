"""The table that train and evaluate end with."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.config.training import METRIC_NAMES, EvaluationConfig
from jobs.evaluation.acceptance import WHOLE, describe


def print_report(console: Console, report: Mapping[str, Any], settings: EvaluationConfig) -> None:
    """Each ranker's metrics, then the differences to each other one in the chosen metric, whole and by slice."""
    console.print(f"{report['num_queries']:,} queries", markup=False)
    if report["num_unknown_items"]:
        console.print(f"{report['num_unknown_items']:,} relevant items are not in the catalogue", markup=False)
    table = Table("ranker", *METRIC_NAMES, box=None, header_style="bold")
    for name, parts in report["rankers"].items():
        for part in (part for part in WHOLE if part in parts):
            table.add_row(f"{name}, {part}", *(f"{parts[part][metric]:.4f}" for metric in METRIC_NAMES))
    console.print(table, markup=False)
    for other, parts in report["differences"].items():
        table = Table(f"{settings.metric}, against {other}", "difference, with its 95 % interval", box=None)
        for part in sorted(parts, key=lambda part: (part not in WHOLE, part)):
            table.add_row(part, describe(parts[part][settings.metric]))
        console.print(table, markup=False)
