"""The command that deletes what no kept release needs. It needs no Ray."""

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from indexing.release.lease import hold_lease
from indexing.release.retention import PrunePlan, apply_prune, check_min_age, plan_prune
from indexing.store import open_store
from jobs.cli.options import AsJson, Store, whole_number
from jobs.cli.output import print_json
from jobs.cli.store import owner_name
from jobs.config.load import load_config
from jobs.config.schema import RetentionConfig

RetentionFile = Annotated[
    str | None,
    typer.Option("-c", "--config", metavar="FILE", help="Take retention.keep_last and min_age from this file."),
]
KeepLast = Annotated[
    int | None,
    typer.Option("--keep-last", metavar="K", parser=whole_number, help="Newest releases to keep, 7 by default."),
]
MinAge = Annotated[
    str | None,
    typer.Option(
        "--min-age", metavar="AGE", help="Keep younger blobs and releases; 24h by default, at least 1h (s, m, h or d)."
    ),
]
Apply = Annotated[bool, typer.Option("--apply", help="Delete them.")]


def prune(
    store: Store,
    config: RetentionFile = None,
    keep_last: KeepLast = None,
    min_age: MinAge = None,
    apply: Apply = False,
    as_json: AsJson = False,
) -> None:
    """Delete blobs that no kept release lists; without --apply, only show them.

    Release files are always kept. Holds the lease while it deletes, so that no run publishes meanwhile.
    """
    retention = load_config(config).retention if config else RetentionConfig()
    if min_age is not None:
        retention = RetentionConfig(keep_last=retention.keep_last, min_age=min_age)
    opened, min_age_s = open_store(store), retention.min_age_s()
    check_min_age(min_age_s)  # before a lease is taken
    with hold_lease(opened, owner_name("prune"), wait=False, deletes=True) if apply else nullcontext() as lease:
        plan = plan_prune(
            opened,
            keep_last=retention.keep_last if keep_last is None else keep_last,
            min_age_s=min_age_s,
        )
        if not as_json:
            print_plan(plan)
        num_deleted = apply_prune(opened, plan, lease.check) if lease else 0
    if as_json:
        return print_json({**plan_record(plan), "is_applied": apply, "num_deleted": num_deleted})
    if apply:
        print(f"deleted {num_deleted} blobs and aborted {len(plan.to_abort)} unfinished uploads")
    else:
        print("nothing was deleted; --apply deletes")


def print_plan(plan: PrunePlan) -> None:
    for number, reason in plan.protected.items():
        print(f"release {number} keeps its blobs: {reason}")
    print(f"{plan.num_kept} blobs are listed by these; {plan.num_young} others are too young to delete")
    print(f"to delete: {len(plan.to_delete)} blobs, {plan.to_delete_bytes / 1e6:,.1f} MB")
    print(f"to abort: {len(plan.to_abort)} unfinished uploads")


def plan_record(plan: PrunePlan) -> dict[str, Any]:
    return {
        "protected": {str(number): reason for number, reason in plan.protected.items()},
        "num_kept": plan.num_kept,
        "num_young": plan.num_young,
        "to_delete": [{"key": info.key, "size_bytes": info.size_bytes} for info in plan.to_delete],
        "to_delete_bytes": plan.to_delete_bytes,
        "to_abort": [upload.key for upload in plan.to_abort],
    }
