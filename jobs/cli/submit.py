"""The command that runs another one as a job of a Ray cluster."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from indexing.errors import ConfigError, first_line
from jobs.cli.build import require_ray

Words = Annotated[list[str], typer.Argument(metavar="COMMAND...", help="Such as nightly -c FILE.", show_default=False)]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Of Ray's dashboard; RAY_API_SERVER_ADDRESS by default."),
]
WorkingDir = Annotated[
    str, typer.Option("--working-dir", metavar="FOLDER", help="Copied to the cluster, where the command runs in it.")
]


def submit(words: Words, address: Address = None, working_dir: WorkingDir = ".") -> None:
    """Run a command as a job of a Ray cluster; ends with its exit code.

    Shows what the job prints. Ctrl-C and SIGTERM stop it. Options of this command come first.
    """
    require_ray()
    from cluster.job import run_job

    if not Path(working_dir).is_dir():
        raise ConfigError(f"--working-dir: expected a folder, got {working_dir}")
    try:
        code = run_job(shlex.join(["python", "-m", "jobs", *words]), working_dir, address, write)
    except ValueError as error:
        raise ConfigError(f"--working-dir: cannot send {working_dir}: {first_line(error)}") from error
    raise typer.Exit(code)


def write(text: str) -> None:
    print(text, end="", flush=True)
