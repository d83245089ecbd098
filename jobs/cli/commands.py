"""The commands that make releases and encoders: nightly, its stages, plan, train, evaluate."""

import argparse
import importlib.util
from pathlib import Path

from rich.console import Console

from indexing.errors import ConfigError
from jobs.config.load import load_config, to_yaml
from jobs.progress import Progress

STAGES: dict[str, tuple[str, frozenset[str] | None]] = {
    "nightly": ("publish", None),
    "encode": ("encode", frozenset({"prepare", "encode"})),
    "build": ("build", frozenset({"build"})),
    "validate": ("validate", frozenset({"validate"})),
    "publish": ("publish", frozenset({"publish"})),
}
"""command → (the last stage, the stages that may run)."""


def require_ray() -> None:
    """Raises ConfigError where only the reader is installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("this command needs Ray, which is not installed: pip install 'nightcrate[build]'")


def run(arguments: argparse.Namespace) -> None:
    """nightly, or the stage of that name."""
    require_ray()
    from jobs.nightly import run_night  # Ray loads only where it runs
    from jobs.report.console import print_record
    from jobs.run import open_run
    from jobs.run_record import make_record

    if arguments.dry_run:
        print(to_yaml(load_config(arguments.config, arguments.overrides)))  # not by rich, which would wrap long lines
        return plan(arguments)
    config = load_config(arguments.config, arguments.overrides)
    last_stage, allowed = STAGES[arguments.stage]
    progress = Progress(Console())
    outcome = run_night(config, last_stage, progress, allowed)
    print_record(open_run(config, progress), make_record(outcome, progress.seconds))


def plan(arguments: argparse.Namespace) -> None:
    require_ray()
    from jobs.plan import make_plan
    from jobs.report.plan import print_plan

    config = load_config(arguments.config, arguments.overrides)
    print_plan(make_plan(config), Console())


def train(arguments: argparse.Namespace) -> None:
    require_training()
    from jobs.report.evaluation import print_evaluation
    from jobs.training.encoder.run import require_accepted, run_training

    config, console = load_config(arguments.config, arguments.overrides), Console()
    trained = run_training(config, Progress(console))
    print_evaluation(console, trained.report, config.evaluation.metric)
    console.print(f"loss curve: {trained.curve_url}", markup=False, soft_wrap=True)
    require_accepted(trained.reasons, trained.report_url)
    assert trained.accepted is not None
    console.print(f"accepted as encoder {trained.accepted.number} of {config.store}", markup=False, soft_wrap=True)


def evaluate(arguments: argparse.Namespace) -> None:
    require_training()
    from jobs.evaluation.run import run_evaluation, with_beir
    from jobs.report.evaluation import print_evaluation

    config, console = load_config(arguments.config, arguments.overrides), Console()
    if arguments.beir:
        config = with_beir(config, Path(arguments.beir), arguments.split, Progress(console))
    report = run_evaluation(config, Progress(console))
    print_evaluation(console, report, config.evaluation.metric)
    if arguments.out:
        Path(arguments.out).write_bytes(report.to_bytes() + b"\n")


def require_training() -> None:
    """Raises ConfigError where what measures and draws is not installed."""
    require_ray()
    for module in ("bm25s", "ir_measures", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"this command needs {module}, which is not installed: pip install 'nightcrate[train]'")
