"""The commands that make a release: nightly, its stages and plan. Ray loads inside them, so the help is quick."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING, Any

import typer

from indexing.errors import ConfigError
from jobs.cli.options import AsJson, ConfigFile, DryRun, Overrides
from jobs.cli.output import Output, output_of, print_json
from jobs.config.load import load_config, to_yaml
from jobs.config.schema import Config
from jobs.report.terminal import PlainConsole

if TYPE_CHECKING:
    from jobs.plan import Plan


def nightly(context: typer.Context, config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Encode, build, validate and publish; resumes where an earlier run stopped."""
    run(output_of(context), load_config(config, overrides or ()), "publish", None, dry_run)


def plan(context: typer.Context, config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show what nightly would do: rows to encode, reuse and delete, shards, bytes, time, memory; reads only."""
    show_plan(load_config(config, overrides or ()), as_json)


def encode(context: typer.Context, config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Check the catalogue and encode the texts that have no vector yet."""
    run(output_of(context), load_config(config, overrides or ()), "encode", frozenset({"prepare", "encode"}), dry_run)


def build(context: typer.Context, config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Build the shards from the vectors that encode made."""
    run(output_of(context), load_config(config, overrides or ()), "build", frozenset({"build"}), dry_run)


def validate(context: typer.Context, config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Check the recall of the built shards against exact search, and every other gate."""
    run(output_of(context), load_config(config, overrides or ()), "validate", frozenset({"validate"}), dry_run)


def publish(context: typer.Context, config: ConfigFile, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Upload the validated shards and commit them as the next release."""
    run(output_of(context), load_config(config, overrides or ()), "publish", frozenset({"publish"}), dry_run)


def run(output: Output, config: Config, last_stage: str, allowed: frozenset[str] | None, dry_run: bool) -> None:
    """Up to `last_stage`; `allowed` are the stages that may run, the others must be done."""
    require_ray()
    from jobs.nightly import run_night
    from jobs.report.console import print_record
    from jobs.run import open_run
    from jobs.run_record import make_record

    if dry_run:
        print(to_yaml(config))
        return show_plan(config, as_json=False)
    night = open_run(config, output.progress(stderr=False), allowed)
    print_record(night, make_record(run_night(night, last_stage), night.progress.seconds))


def show_plan(config: Config, as_json: bool) -> None:
    require_ray()
    from jobs.plan import make_plan
    from jobs.report.plan import print_plan

    plan = make_plan(config)
    if as_json:
        print_json(plan_record(plan))
    else:
        print_plan(plan, PlainConsole())


def plan_record(plan: "Plan") -> dict[str, Any]:
    """The fields of the plan; items and shards of a collection by name."""
    collections = {name: {"items": items, "shards": shards} for name, (items, shards) in plan.collections.items()}
    return {**dataclasses.asdict(plan), "collections": collections}


def require_ray() -> None:
    """Raises ConfigError where only the reader is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this command needs Ray, which is not installed: pip install 'nightcrate[build]'")
