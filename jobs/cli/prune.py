"""The command that deletes what no kept release needs. Without --workspace it needs no Ray."""

import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Annotated

import typer

from indexing.encoder.locate import unused_models
from indexing.release.commit import read_release
from indexing.release.lease import Lease, hold_lease
from indexing.release.registry import delete_encoders, unused_encoders
from indexing.release.retention import PrunePlan, apply_prune, check_min_age, plan_prune
from indexing.store import ObjectInfo, open_store
from indexing.store import Store as StoreOf
from indexing.store.cache import default_cache_folder
from jobs.cli.build import require_ray
from jobs.cli.options import AsJson, Store, whole_number
from jobs.cli.output import print_json
from jobs.cli.store import owner_name
from jobs.config.load import load_config
from jobs.config.schema import RetentionConfig
from jobs.workspace.sweep import apply_sweep, plan_sweep

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
Workspace = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        metavar="URL",
        help="Also delete what no recent run uses in this workspace, and accepted encoders and cached models that "
        "nothing uses.",
    ),
]
Apply = Annotated[bool, typer.Option("--apply", help="Delete what is listed.")]


def prune(
    store: Store,
    config: RetentionFile = None,
    keep_last: KeepLast = None,
    min_age: MinAge = None,
    workspace: Workspace = None,
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
        others = prune_leftovers(opened, workspace, plan.protected, min_age_s, lease, as_json) if workspace else {}
    if as_json:
        return print_json({**plan_record(plan), "is_applied": apply, "num_deleted": num_deleted, **others})
    if apply:
        rest = ", and the rest as listed" if workspace else ""
        print(f"deleted {num_deleted} blobs and aborted {len(plan.to_abort)} unfinished uploads{rest}")
    else:
        print("nothing was deleted; --apply deletes")


def prune_leftovers(
    store: StoreOf, workspace: str, protected: Iterable[int], min_age_s: float, lease: Lease | None, as_json: bool
) -> dict[str, object]:
    """What runs have left elsewhere; deleted where there is a lease. Returns it for --json, else prints it."""
    require_ray()  # the record of a run comes with all that makes one
    from jobs.run_record import work_in_use

    opened, cache = open_store(workspace), default_cache_folder()
    sweep = plan_sweep(opened, work_in_use(opened, min_age_s), min_age_s)
    releases = [read_release(store, number) for number in protected]
    encoders = unused_encoders(store, [found.encoder.digest for found in releases if found.encoder], min_age_s)
    models = unused_models(cache, min_age_s)
    if not as_json:
        size, size_of_encoders = sweep.to_delete_bytes, sum(info.size_bytes for info in encoders)
        print(f"to delete: {len(sweep.to_delete)} files of {opened.url}, {size / 1e6:,.1f} MB; {sweep.num_kept} stay")
        print(f"to abort: {len(sweep.to_abort)} unfinished uploads there")
        print(f"to delete: {len(encoders)} files of encoders, {size_of_encoders / 1e6:,.1f} MB")
        print(f"to delete: {len(models)} models of {cache}")
    if lease:
        apply_sweep(opened, sweep, lease.check)
        delete_encoders(store, encoders, lease.check)
        for path in models:
            shutil.rmtree(path, ignore_errors=True)
    return {
        "workspace_to_delete": object_records(sweep.to_delete),
        "workspace_to_delete_bytes": sweep.to_delete_bytes,
        "workspace_to_abort": [upload.key for upload in sweep.to_abort],
        "encoders_to_delete": object_records(encoders),
        "models_to_delete": list(map(str, models)),
    }


def object_records(infos: Iterable[ObjectInfo]) -> list[dict[str, object]]:
    return [{"key": info.key, "size_bytes": info.size_bytes} for info in infos]


def print_plan(plan: PrunePlan) -> None:
    for number, reason in plan.protected.items():
        print(f"release {number} keeps its blobs: {reason}")
    print(f"{plan.num_kept} blobs are listed by these; {plan.num_young} others are too young to delete")
    print(f"to delete: {len(plan.to_delete)} blobs, {plan.to_delete_bytes / 1e6:,.1f} MB")
    print(f"to abort: {len(plan.to_abort)} unfinished uploads")


def plan_record(plan: PrunePlan) -> dict[str, object]:
    return {
        "protected": {str(number): reason for number, reason in plan.protected.items()},
        "num_kept": plan.num_kept,
        "num_young": plan.num_young,
        "to_delete": object_records(plan.to_delete),
        "to_delete_bytes": plan.to_delete_bytes,
        "to_abort": [upload.key for upload in plan.to_abort],
    }
