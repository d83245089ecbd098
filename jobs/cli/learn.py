"""The commands that train and measure encoders. Ray and torch load inside them, so the help is quick."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from indexing.errors import ConfigError
from indexing.release.codec import to_plain
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

    It is accepted if it is better on queries that training has not seen.
    """
    require_training()
    from jobs.report.evaluation import print_evaluation
    from jobs.training.encoder.run import require_accepted, run_training

    settings, console = load_config(config, overrides or ()), PlainConsole()
    trained = run_training(settings, output_of(context).progress())
    number = trained.accepted.number if trained.accepted else None
    if as_json:
        record = {"report": to_plain(trained.report), "loss_curve": trained.curve_url}
        print_json({**record, "accepted": number, "reasons": trained.reasons})
    else:
        print_evaluation(console, trained.report, settings.evaluation.metric)
        console.print(f"loss curve: {trained.curve_url}", soft_wrap=True)
    require_accepted(trained.reasons, trained.report_url)
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
    from jobs.report.evaluation import print_evaluation
    from jobs.run import open_run

    settings = load_config(config, overrides or ())
    run = open_run(settings, output_of(context).progress())
    left_out: dict[str, int] = {}
    if beir:
        run, left_out = with_beir(run, Path(beir), split)
    report = run_evaluation(run, left_out)
    if as_json:
        print_json(to_plain(report))
    else:
        print_evaluation(PlainConsole(), report, settings.evaluation.metric)
    if out:
        write_report(Path(out), report.to_bytes())


def write_report(path: Path, report: bytes) -> None:
    try:
        path.write_bytes(report + b"\n")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {path}: {error.strerror}") from error


def require_training() -> None:
    """Raises ConfigError where the packages that measure and plot are not installed."""
    require_ray()
    for module in ("bm25s", "ir_measures", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"this command needs {module}, which is not installed: pip install 'nightcrate[train]'")
