"""The commands that make releases and encoders: nightly, its stages, plan, train, evaluate."""

import argparse
import importlib.util
import json
from pathlib import Path

from rich.console import Console

from indexing.errors import ConfigError
from jobs.config.load import load_config, to_yaml
from jobs.progress import Progress

STAGES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "nightly": ("publish", None),
    "encode": ("encode", ("prepare", "encode")),
    "build": ("build", ("build",)),
    "validate": ("validate", ("validate",)),
    "publish": ("publish", ("publish",)),
}
"""command → (the last stage, the stages that may run)."""


def require_ray() -> None:
    """Raises ConfigError where only the reader is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this command needs Ray, which is not installed: pip install 'nightcrate[build]'")


def run(arguments: argparse.Namespace) -> None:
    """nightly, or the stage of that name."""
    require_ray()
    from jobs.nightly import run as run_stages  # Ray loads only where it runs
    from jobs.report.console import print_summary

    if arguments.dry_run:
        print(to_yaml(load_config(arguments.config, arguments.overrides)))  # not by rich, which would wrap long lines
        return plan(arguments)
    config = load_config(arguments.config, arguments.overrides)
    last_stage, allowed = STAGES[arguments.stage]
    progress = Progress(Console(), allowed)
    outcome = run_stages(config, last_stage, progress)
    print_summary(config, outcome, progress)


def plan(arguments: argparse.Namespace) -> None:
    require_ray()
    from jobs.plan import make_plan
    from jobs.report.plan import print_plan

    config = load_config(arguments.config, arguments.overrides)
    print_plan(make_plan(config), Console())


def train(arguments: argparse.Namespace) -> None:
    require_training()
    from jobs.report.evaluation import print_report
    from jobs.training.encoder.run import require_accepted, run_training

    config, console = load_config(arguments.config, arguments.overrides), Console()
    trained = run_training(config, Progress(console))
    print_report(console, trained.report, config.evaluation)
    curve = trained.artifact.store.describe(trained.artifact.key("curve.svg"))
    console.print(f"loss curve: {curve}", markup=False, soft_wrap=True)
    require_accepted(trained.reasons, trained.artifact)
    assert trained.accepted is not None
    console.print(f"accepted as encoder {trained.accepted.number} of {config.store}", markup=False, soft_wrap=True)


def evaluate(arguments: argparse.Namespace) -> None:
    require_training()
    from jobs.evaluation.run import run_evaluation, with_beir
    from jobs.report.evaluation import print_report

    config, console = load_config(arguments.config, arguments.overrides), Console()
    if arguments.beir:
        config = with_beir(config, Path(arguments.beir), arguments.split)
    report = run_evaluation(config, Progress(console))
    print_report(console, report, config.evaluation)
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, sort_keys=True, indent=1) + "\n")


def require_training() -> None:
    """Raises ConfigError where what measures and draws is not installed."""
    require_ray()
    for module in ("bm25s", "ir_measures", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"this command needs {module}, which is not installed: pip install 'nightcrate[train]'")
