"""The commands that make a release: nightly, its stages and plan. Ray loads inside them, so the help is quick."""

import dataclasses
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from indexing.errors import ConfigError
from jobs.cli.options import AsJson, ConfigFile, DryRun, Overrides
from jobs.cli.output import output_of, print_json
from jobs.config.load import load_config, to_yaml
from jobs.config.schema import Config
from jobs.report.terminal import PlainConsole

if TYPE_CHECKING:
    from jobs.plan import Plan


def plan(context: typer.Context, config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what nightly would do: rows to encode, reuse and delete, shards, bytes, time, memory; reads only."""
    show_plan(load_config(config, overrides or ()), as_json)


def up_to(last_stage: str, *allowed: str, help: str) -> Callable[..., None]:
    """A command that runs up to `last_stage`. Only the `allowed` stages may run, where any are named."""

    def command(
        context: typer.Context,
        config: ConfigFile,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        as_json: AsJson = False,
    ) -> None:
        run(context, load_config(config, overrides or ()), last_stage, frozenset(allowed) or None, dry_run, as_json)

    command.__doc__ = help
    return command


nightly = up_to("publish", help="Encode, build, validate and publish; resumes where an earlier run stopped.")
encode = up_to("encode", "prepare", "encode", help="Check the catalogue and encode the texts that have no vector yet.")
build = up_to("build", "build", help="Build the shards from the vectors that encode made.")
validate = up_to(
    "validate", "validate", help="Check the recall of the built shards against exact search, and every other gate."
)
publish = up_to("publish", "publish", help="Upload the validated shards and commit them as the next release.")


def run(
    context: typer.Context,
    config: Config,
    last_stage: str,
    allowed: frozenset[str] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Up to `last_stage`; `allowed` are the stages that may run, the others must be done. Every run leaves a record."""
    require_ray()
    from indexing.release.codec import to_plain
    from jobs.nightly import run_night
    from jobs.report.console import print_record
    from jobs.run import open_run
    from jobs.run_record import begin_record, keep_record, make_record

    if dry_run:
        return show_dry_run(config, as_json)
    output, start = output_of(context), begin_record(str(context.info_name))
    night = open_run(config, output.progress(stderr=as_json), allowed)
    try:
        record = make_record(night, start, run_night(night, last_stage))
    except (Exception, KeyboardInterrupt) as error:
        failed = make_record(night, start, None, *output.ending_of(error))
        keep_record(night.workspace, failed)
        if as_json:
            with suppress(BrokenPipeError):  # the failure matters, even if nobody reads about it
                print_json(to_plain(failed))
        raise
    keep_record(night.workspace, record)
    if as_json:
        return print_json(to_plain(record))
    print_record(night, record)


def show_dry_run(config: Config, as_json: bool) -> None:
    """The configuration, then what a run would do."""
    if as_json:
        raise ConfigError("expected --dry-run or --json, got both; plan --json is the plan as JSON")
    print(to_yaml(config))
    show_plan(config, as_json=False)


def show_plan(config: Config, as_json: bool) -> None:
    require_ray()
    from jobs.plan import make_plan
    from jobs.report.plan import print_plan

    plan = make_plan(config)
    if as_json:
        print_json(plan_record(plan))
    else:
        print_plan(plan, PlainConsole())


def plan_record(plan: "Plan") -> dict[str, object]:
    """The fields of the plan; items and shards of a collection by name."""
    collections = {name: {"items": items, "shards": shards} for name, (items, shards) in plan.collections.items()}
    return {**dataclasses.asdict(plan), "collections": collections}


def require_ray() -> None:
    """Raises ConfigError where only the reader is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this command needs Ray, which is not installed: pip install 'nightcrate[build]'")
