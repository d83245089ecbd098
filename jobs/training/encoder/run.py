"""The whole of training: pairs and negatives → train → evaluate → accept."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from cluster.session import ray_session
from indexing.encoder import EncoderSettings, resolve_model
from indexing.errors import ConfigError, ValidationFailed
from indexing.release.codec import to_plain
from indexing.release.registry import AcceptedEncoder, accept, encoder_url, newest_encoder
from indexing.store.cache import default_cache_folder
from jobs.config.schema import Config
from jobs.evaluation.acceptance import why_not_accepted
from jobs.evaluation.report import EvaluationReport
from jobs.evaluation.run import INCUMBENT, NEW, measure_all
from jobs.inputs.encoder import EncoderInput, pin_encoder
from jobs.inputs.inputs import Inputs, read_inputs
from jobs.inputs.interactions import check_split, read_interactions
from jobs.inputs.shared import require_shared
from jobs.progress import Progress
from jobs.run import Run, open_run
from jobs.training.encoder.data import DATA_FILES, TrainingCounts, log_pairs, make_data, write_data
from jobs.training.encoder.negatives import Mined, mine
from jobs.training.encoder.train import TrainedSteps, TrainJob, check_workers, train
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint

logger = logging.getLogger(__name__)
FORMAT = 2
SAMPLE_QUERIES = 50


@dataclass(frozen=True)
class Trained:
    report: EvaluationReport
    report_url: str
    curve_url: str
    reasons: list[str]
    """Why the encoder was not accepted; empty where it was."""
    accepted: AcceptedEncoder | None


def run_training(config: Config, progress: Progress) -> Trained:
    """Trains, measures against the encoder in use, and accepts a better one; otherwise only the artifact is stored.

    An artifact that is complete is measured again, not trained again.
    """
    run = open_run(config, progress)
    run = run.with_config(pin_encoder(config, run.store))
    config = run.config
    limit = config.catalogue.max_bad_rows
    log = read_interactions(config.training.interactions, config.s3, "training.interactions", limit)
    held_back = read_interactions(config.evaluation.interactions, config.s3, "evaluation.interactions", limit).rows
    check_split(log.rows, held_back)
    inputs, parent = read_inputs(run), newest_encoder(run.store)
    if inputs.encoder is None:
        raise ConfigError("vectors.path: expected a catalogue and an encoder to train, got precomputed vectors")
    data_fingerprint = log.fingerprint()
    with ray_session(config.ray.address):
        require_shared(run, inputs.source)
        check_workers(config.training, config.ray.address)
        artifact = run_train(run, inputs, inputs.encoder, log.rows, data_fingerprint)
        trained = f"{run.workspace.url}/{artifact.key('encoder')}"
        models = {NEW: trained, INCUMBENT: encoder_url(run.store, parent) if parent else config.encoder.model}
        report = measure_all(run, inputs, models, held_back, log.rows)
    run.workspace.put(artifact.key("report.json"), report.to_bytes())
    reasons = why_not_accepted(report, INCUMBENT, config.evaluation)
    accepted = None
    if not reasons:
        entry = AcceptedEncoder(
            format_version=1,
            number=0,
            parent=parent.number if parent else None,
            digest="",
            base_digest=inputs.encoder.digest,
            interactions_fingerprint=data_fingerprint,
            catalogue_fingerprint=inputs.source.fingerprint,
            config_fingerprint=fingerprint(
                *(replace(part, interactions=None) for part in (config.training, config.evaluation))
            ),
            created_at="",
            writer_id="",
            metrics={"rankers": report.rankers, "differences": to_plain(report.differences[INCUMBENT])},
        )
        accepted = accept(run.store, resolve_model(trained, cache_dir=default_cache_folder(), s3=config.s3), entry)
    report_url, curve_url = (run.workspace.describe(artifact.key(name)) for name in ("report.json", "curve.svg"))
    return Trained(report, report_url, curve_url, reasons, accepted)


def run_train(
    run: Run, inputs: Inputs, encoder: EncoderInput, log: pa.Table, data_fingerprint: str
) -> Artifact[TrainedSteps]:
    """Data, then steps; each is skipped where its artifact is complete."""
    config, release, source = run.config, inputs.parent, inputs.source
    mines = config.training.negatives.per_query > 0 and release is not None and release.encoder is not None
    miner = release.writer_id if mines and release else None
    training = replace(config.training, interactions=None)  # what the logs hold is in their fingerprint
    name = fingerprint(
        FORMAT, encoder.digest, data_fingerprint, source.fingerprint, training, config.catalogue.text, miner
    )
    data = Artifact(run.workspace, f"training/{name}/data", TrainingCounts)
    if not data.read(*DATA_FILES):
        pairs, mined = log_pairs(log), Mined()
        if mines and release:
            mined = mine(release, run.store, run.workspace, pairs, config.training.negatives)
            run.workspace.put(data.key("negatives.csv"), mined.sample(SAMPLE_QUERIES))
        made = make_data(run, source, inputs.rules, pairs, mined)
        if made.num_unknown:
            logger.warning(
                "training: %d of %d pairs are of items that the catalogue lacks", made.num_unknown, len(pairs)
            )
        write_data(data, made)
    settings = EncoderSettings(
        model=config.encoder.model,
        device="cuda" if config.training.use_gpu else config.encoder.device,
        dtype=config.encoder.dtype,
        max_tokens=min(config.training.max_tokens, config.encoder.max_tokens),
    )
    artifact = Artifact(run.workspace, f"training/{name}", TrainedSteps)
    train(TrainJob(artifact, data, settings, config.s3, config.training), run.progress)
    return artifact


def require_accepted(reasons: Sequence[str], report_url: str) -> None:
    """Raises ValidationFailed with the reasons."""
    if reasons:
        raise ValidationFailed(f"the new encoder was not accepted: {'; '.join(reasons)}; report: {report_url}")
