"""The table that train and evaluate end with."""

from rich.console import Console
from rich.table import Table

from jobs.config.training import METRIC_NAMES
from jobs.evaluation.acceptance import WHOLE
from jobs.evaluation.report import EvaluationReport
from jobs.report.terminal import printable


def print_evaluation(console: Console, report: EvaluationReport, metric: str) -> None:
    """Each ranker's metrics, then the differences to each other one in `metric`, whole and by slice."""
    console.print(f"{report.num_queries:,} queries", markup=False)
    if report.num_unknown_items:
        console.print(f"{report.num_unknown_items:,} relevant items are not in the catalogue", markup=False)
    for reason, count in report.left_out.items():
        console.print(f"{count:,} {printable(reason)} are left out", markup=False)
    table = Table("ranker", *METRIC_NAMES, box=None, header_style="bold")
    for name, parts in report.rankers.items():
        for part in (part for part in WHOLE if part in parts):
            table.add_row(f"{name}, {part}", *(f"{parts[part][each]:.4f}" for each in METRIC_NAMES))
    console.print(table, markup=False)
    for other, differences in report.differences.items():
        table = Table(f"{metric}, against {other}", "difference, with its 95 % interval", box=None)
        for part in sorted(differences, key=lambda part: (part not in WHOLE, part)):
            table.add_row(printable(part), str(differences[part][metric]))
        console.print(table, markup=False)
