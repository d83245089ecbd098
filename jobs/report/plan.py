"""The table that `plan` prints."""

from rich.console import Console
from rich.table import Table

from jobs.plan import Plan
from jobs.report.terminal import printable


def print_plan(plan: Plan, console: Console) -> None:
    table = Table("collection", "items", "shards", box=None, header_style="bold")
    for name, (items, shards) in plan.collections.items():
        table.add_row(printable(name), f"{items:,}", str(shards))
    console.print(table, markup=False)
    basis = "by the rates of earlier runs here" if plan.is_measured else "a guess: no run here has been measured yet"
    lines = [
        f"rows          {plan.num_rows:,}, {plan.num_bad:,} invalid",
        f"encode        {plan.num_to_encode:,} texts; {plan.num_reused:,} are reused",
        f"index         {plan.index_bytes / 1e6:,.1f} MB",
        f"time          about {plan.seconds:,.0f} s, {basis}",
        f"memory        about {plan.worker_bytes / 2**20:,.0f} MiB in the largest worker",
    ]
    if plan.changes is not None:
        names = ("new", "changed", "unchanged", "deleted")
        changes = ", ".join(f"{plan.changes[name]:,} {name}" for name in names)
        lines.insert(2, f"items         {changes} since the current release")
    reason = plan.why_rebuild or "in shards that are new or have changed too much; the others are carried over"
    lines.insert(-3, f"build         {plan.num_to_index:,} items: {reason}")
    if plan.why_held:
        lines.append(f"publish       nothing: {plan.why_held}")
    console.print()
    for line in lines:
        console.print(printable(line), markup=False, highlight=False)
