"""The commands that make releases: nightly, its stages, and plan."""

import argparse
import importlib.util

from rich.console import Console

from indexing.errors import ConfigError

from .config import load_config, to_yaml
from .progress import Progress

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
    from .nightly import run as run_stages  # Ray loads only where it runs
    from .summary import print_summary

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
    from .plan import make_plan, print_plan

    config = load_config(arguments.config, arguments.overrides)
    print_plan(make_plan(config), Console())
