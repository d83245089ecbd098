"""The table of commands, and the options that apply to all of them."""

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Annotated, Any

import typer

from jobs.cli import build, diff, init, learn, prune, search, store, submit
from jobs.cli.group import OUTPUT_PANEL, Command, Commands
from jobs.cli.output import LOG_FORMATS, output_of

PROGRAM = "nightcrate"
DEMO_STORE = "file://./build/demo/store"
DEMO_WORKSPACE = "file://./build/demo/workspace"
VERSIONS_OF = ("ray", "torch", "hnswlib")

EXIT_CODES = """Exit codes:
    0  done
    2  wrong configuration or arguments
    3  bad input data
    4  a gate failed, or train accepted no encoder
    5  another run is working or has published, or a rollback blocks this one
    6  storage or cluster unavailable
   70  a bug
  130  interrupted
  143  terminated"""

PASSES_ON = "submit"
"""The command that takes the options after its first argument as those of another."""

COMMANDS: dict[str, list[tuple[str, Callable[..., None], str]]] = {
    "Make a release": [
        ("init", init.init, "nightcrate init tracks.csv --out configs/my.yaml"),
        ("nightly", build.nightly, "nightcrate nightly -c configs/demo.yaml index.M=24"),
        ("plan", build.plan, "nightcrate plan -c configs/demo.yaml"),
        ("encode", build.encode, "nightcrate encode -c configs/demo.yaml encoder.device=cpu"),
        ("build", build.build, "nightcrate build -c configs/demo.yaml"),
        ("validate", build.validate, "nightcrate validate -c configs/demo.yaml"),
        ("publish", build.publish, "nightcrate publish -c configs/demo.yaml"),
        (PASSES_ON, submit.submit, "nightcrate submit nightly -c configs/nightly.yaml"),
    ],
    "Use releases": [
        (
            "search",
            search.search,
            f'nightcrate search {DEMO_STORE} "songs about rain" -k 5\n'
            f"  nightcrate search {DEMO_STORE} --queries queries.parquet --out hits.parquet",
        ),
        ("releases", store.releases, f"nightcrate releases {DEMO_STORE} --json"),
        ("verify", store.verify, f"nightcrate verify {DEMO_STORE} --release 3"),
        ("diff", diff.diff, f"nightcrate diff {DEMO_STORE} 3 4 --queries queries.parquet"),
    ],
    "Change a store": [
        ("rollback", store.rollback, f"nightcrate rollback {DEMO_STORE} --to 3"),
        ("resume", store.resume, f"nightcrate resume {DEMO_STORE}"),
        ("pin", store.pin_release, f"nightcrate pin {DEMO_STORE} 3"),
        ("unpin", store.unpin_release, f"nightcrate unpin {DEMO_STORE} 3"),
        (
            "prune",
            prune.prune,
            f"nightcrate prune {DEMO_STORE} --keep-last 7 --min-age 2d\n"
            f"  nightcrate prune {DEMO_STORE} --workspace {DEMO_WORKSPACE} --apply",
        ),
    ],
    "Train and measure encoders": [
        ("train", learn.train, "nightcrate train -c configs/train.yaml"),
        ("evaluate", learn.evaluate, "nightcrate evaluate -c configs/train.yaml --out report.json"),
    ],
}
"""group → name, function and examples of each command."""


def make_app() -> Commands:
    app = typer.Typer(
        cls=Commands,
        help="A music and podcast catalogue in, a searchable release in object storage out.",
        epilog=f"{EXIT_CODES}\n\nExamples: {PROGRAM} COMMAND --help",
        callback=common_options,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for group, commands in COMMANDS.items():
        for name, function, examples in commands:
            heading = "Examples" if "\n" in examples else "Example"
            epilog = f"{heading}:\n  {examples}\n\nExit codes: {PROGRAM} --help"
            settings = {"allow_interspersed_args": name != PASSES_ON}
            app.command(name, cls=Command, rich_help_panel=group, epilog=epilog, context_settings=settings)(function)
    commands_of_app = typer.main.get_command(app)
    assert isinstance(commands_of_app, Commands)
    return commands_of_app


def print_versions(is_wanted: bool) -> None:
    if is_wanted:
        libraries = ", ".join(f"{name} {version(name)}" for name in VERSIONS_OF)
        print(f"{PROGRAM} {version(PROGRAM)}\npython {platform.python_version()}, {libraries}")
        raise typer.Exit


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def switch(*names: str, sets: str, help: str) -> Any:
    """An option of every command that sets one field of Output."""

    def set_field(context: typer.Context, is_wanted: bool) -> None:
        if is_wanted:
            setattr(output_of(context), sets, True)

    return typer.Option(*names, callback=set_field, expose_value=False, rich_help_panel=OUTPUT_PANEL, help=help)


def set_log_format(context: typer.Context, name: str | None) -> None:
    if name is not None:
        if name not in LOG_FORMATS:
            raise typer.BadParameter(f"expected {' or '.join(LOG_FORMATS)}, got {name!r}")
        output_of(context).log_format = name


def common_options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_versions, is_eager=True, help="Show versions and exit."),
    ] = False,
    verbose: Annotated[
        bool, switch("-v", "--verbose", sets="is_verbose", help="Also log the details of nightcrate's own work.")
    ] = False,
    quiet: Annotated[bool, switch("-q", "--quiet", sets="is_quiet", help="Only errors and the result.")] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            callback=set_log_format,
            expose_value=False,
            metavar="text|json",
            autocompletion=lambda: list(LOG_FORMATS),
            rich_help_panel=OUTPUT_PANEL,
            help="Log lines and errors as text or as JSON lines; text by default.",
        ),
    ] = None,
    debug: Annotated[
        bool, switch("--debug", sets="is_debug", help="Log everything, and show the traceback of an error.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
