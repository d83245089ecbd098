"""The command that writes a configuration for a catalogue. It needs no Ray."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from indexing.errors import ConfigError
from jobs.cli.options import AsJson
from jobs.cli.output import print_json
from jobs.report.terminal import PlainConsole, printable

File = Annotated[
    str, typer.Argument(metavar="FILE", help="CSV, JSON lines or Parquet: a file or a folder.", show_default=False)
]
Out = Annotated[str, typer.Option("--out", metavar="YAML", help="The configuration to write.")]


def init(file: File, out: Out = "my.yaml", as_json: AsJson = False) -> None:
    """Write a configuration for a catalogue, with a guess of what its columns are called.

    Shows three rows as the encoder would read them. An existing configuration stays as it is.
    """
    from jobs.inputs.draft import draft_config

    target, console = Path(out), PlainConsole()
    if target.exists():
        raise ConfigError(f"--out: expected a file that does not exist yet, got {out}; delete it, or name another")
    draft = draft_config(file, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as opened:
            opened.write(draft.yaml)
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from error
    if as_json:
        shown = {"columns": draft.columns, "carried": draft.carried, "num_rows": draft.num_rows, "texts": draft.texts}
        return print_json({"config": out, **shown})
    for name, rule in draft.columns.items():
        source = rule if isinstance(rule, str) else f"{rule['from']}, split at {rule['split']}"
        console.print(f"{name:<14}{printable(source)}", soft_wrap=True)
    if draft.carried:
        console.print(f"{'with hits':<14}{printable(', '.join(draft.carried))}", soft_wrap=True)
    console.print(f"\nrows as the encoder reads them, of {draft.num_rows:,}:", soft_wrap=True)
    for text in draft.texts:
        console.print(f"  {printable(text)}", soft_wrap=True)
    console.print(f"\n{out} is written; look at it, then run: nightcrate plan -c {shlex.quote(out)}", soft_wrap=True)
