"""The commands that train and measure encoders. Ray and torch load inside them: the help must come at once."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from indexing.errors import ConfigError
from jobs.cli.build import require_ray
from jobs.cli.options import AsJson, ConfigFile, Overrides
from jobs.cli.output import output_of, print_json
from jobs.config.load import load_config
from jobs.report.terminal import PlainConsole

Beir = Annotated[
    str | None,
    typer.Option("--beir", metavar="FOLDER", help="A data set: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."),
]
Split = Annotated[str, typer.Option("--split", metavar="SPLIT", help="The split of the data set.")]
Out = Annotated[str | None, typer.Option("--out", metavar="JSON", help="Also write the report to this file.")]


def train(context: typer.Context, config: ConfigFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Fine-tune the encoder on search logs.

    It is accepted where it is better on queries that training has not seen.
    """
    require_training()
    from jobs.report.evaluation import print_report
    from jobs.training.encoder.run import require_accepted, run_training

    settings, console = load_config(config, overrides or ()), PlainConsole()
    trained = run_training(settings, output_of(context).progress())
    curve = trained.artifact.store.describe(trained.artifact.key("curve.svg"))
    number = trained.accepted.number if trained.accepted else None
    if as_json:
        print_json(
            {"report": trained.report, "loss_curve": curve, "accepted": number, "reasons": list(trained.reasons)}
        )
    else:
        print_report(console, trained.report, settings.evaluation)
        console.print(f"loss curve: {curve}", soft_wrap=True)
    require_accepted(trained.reasons, trained.artifact)
    if not as_json:
        console.print(f"accepted as encoder {number} of {settings.store}", soft_wrap=True)


def evaluate(
    context: typer.Context,
    config: ConfigFile,
    overrides: Overrides = None,
    beir: Beir = None,
    split: Split = "test",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Measure encoder.model on search logs or a BEIR data set.

    Full retrieval, exact and through HNSW, next to BM25.
    """
    require_training()
    from jobs.evaluation.run import run_evaluation, with_beir
    from jobs.report.evaluation import print_report

    settings = load_config(config, overrides or ())
    if beir:
        settings = with_beir(settings, Path(beir), split)
    report = run_evaluation(settings, output_of(context).progress())
    if as_json:
        print_json(report)
    else:
        print_report(PlainConsole(), report, settings.evaluation)
    if out:
        write_report(Path(out), report)


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, sort_keys=True, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {path}: {error.strerror}") from error


def require_training() -> None:
    """Raises ConfigError where what measures and draws is not installed."""
    require_ray()
    for module in ("bm25s", "ir_measures", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"this command needs {module}, which is not installed: pip install 'nightcrate[train]'")
