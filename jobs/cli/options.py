"""The arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer


def whole_number(text: str) -> int:
    """Raises BadParameter with a text like those of our other errors."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, got {text!r}") from None


ConfigFile = Annotated[
    str, typer.Option("-c", "--config", metavar="FILE", help="YAML, such as configs/demo.yaml.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...", help="Override values in the file: index.M=24 encoder.device=cpu.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and the plan, then stop.")]
Store = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="file://./folder or s3://bucket/prefix (endpoint: AWS_ENDPOINT_URL_S3).",
        show_default=False,
    ),
]
ReleaseNumber = Annotated[
    int | None,
    typer.Option(
        "--release", metavar="N", parser=whole_number, help="The number of a release; the current one by default."
    ),
]
TrustedKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-key",
        metavar="PEM",
        help="Refuse a release that is not signed by this Ed25519 public key; may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def paths_of(names: list[str] | None) -> list[Path] | None:
    """None where the option was not given."""
    return [Path(name) for name in names] if names else None
