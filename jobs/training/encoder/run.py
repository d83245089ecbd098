"""The whole of training: pairs and negatives → train → evaluate → accept; and evaluation alone."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cluster.session import ray_session
from indexing.encoder import EncoderSettings, encoder_digest
from indexing.errors import ValidationFailed
from indexing.release.registry import AcceptedEncoder, accept, encoder_url, newest
from indexing.store import Store, open_store
from jobs.config.schema import Config
from jobs.evaluation.acceptance import why_not_accepted
from jobs.evaluation.run import INCUMBENT, NEW, measure_all
from jobs.inputs.catalogue import Source, scan_source
from jobs.inputs.encoder import local_model, pin_encoder, with_encoder
from jobs.inputs.interactions import check_split, interactions_fingerprint, require_interactions
from jobs.inputs.parent import current_release
from jobs.progress import Progress
from jobs.training.encoder.data import log_pairs, make_data, write_data
from jobs.training.encoder.negatives import Mined, mine
from jobs.training.encoder.train import TrainJob, check_workers, train
from jobs.workspace.artifact import Artifact
from jobs.workspace.fingerprint import fingerprint

logger = logging.getLogger(__name__)
FORMAT = 2
SAMPLE_QUERIES = 50


@dataclass(frozen=True)
class Trained:
    artifact: Artifact
    report: dict[str, Any]
    reasons: list[str]
    """Why the encoder was not accepted; empty where it was."""
    accepted: AcceptedEncoder | None


def run_training(config: Config, progress: Progress) -> Trained:
    """Trains, measures against the encoder in use, and accepts what is better; otherwise nothing is stored but the
    artifact. An artifact that is complete is measured again, not trained again.
    """
    config = pin_encoder(config)
    store, workspace = open_store(config.store, config.s3), open_store(config.workspace, config.s3)
    log = require_interactions(config, "training")
    held_back = require_interactions(config, "evaluation")
    check_split(log, held_back)
    parent, source, base_digest = newest(store), scan_source(config), encoder_digest(local_model(config))
    data_fingerprint = interactions_fingerprint(config, "training")
    with ray_session(config.ray.address):
        check_workers(config.training, config.ray.address)
        artifact = run_train(config, source, log, base_digest, data_fingerprint, workspace, progress)
        trained = f"{workspace.url}/{artifact.key('encoder')}"
        models = {NEW: trained, INCUMBENT: encoder_url(store, parent) if parent else config.encoder.model}
        report = measure_all(config, source, models, held_back, log, progress)
    artifact.store.put(artifact.key("report.json"), json.dumps(report, sort_keys=True, indent=1).encode())
    reasons = why_not_accepted(report, INCUMBENT, config.evaluation)
    if reasons:
        return Trained(artifact, report, reasons, None)
    evaluation = replace(config.evaluation, interactions=None)
    entry = AcceptedEncoder(
        format_version=1,
        number=0,
        parent=parent.number if parent else None,
        digest="",
        base_digest=base_digest,
        interactions_fingerprint=data_fingerprint,
        catalogue_fingerprint=source.fingerprint,
        config_fingerprint=fingerprint(replace(config.training, interactions=None), evaluation),
        created_at="",
        writer_id="",
        metrics={"rankers": report["rankers"], "differences": report["differences"][INCUMBENT]},
    )
    return Trained(artifact, report, [], accept(store, local_model(with_encoder(config, trained)), entry))


def run_train(
    config: Config,
    source: Source,
    log: pa.Table,
    base_digest: str,
    data_fingerprint: str,
    workspace: Store,
    progress: Progress,
) -> Artifact:
    """Data, then steps; each is skipped where its artifact is complete."""
    release = current_release(config)
    mines = config.training.negatives.per_query > 0 and release is not None and release.encoder is not None
    miner = release.writer_id if mines and release else None
    settings = replace(config.training, interactions=None)  # what is there is in its fingerprint, wherever it lies
    name = fingerprint(
        FORMAT, base_digest, data_fingerprint, source.fingerprint, settings, config.catalogue.text, miner
    )
    artifact, data = Artifact(workspace, f"training/{name}"), Artifact(workspace, f"training/{name}/data")
    if not data.read_marker():
        pairs, mined = log_pairs(log), Mined()
        if mines and release:
            mined = mine(release, open_store(config.store, config.s3), workspace, pairs, config.training.negatives)
            workspace.put(data.key("negatives.csv"), mined.sample(SAMPLE_QUERIES))
        made = make_data(config, source, pairs, mined, progress)
        if made.num_unknown:
            logger.warning(
                "training: %d of %d pairs are of items that the catalogue lacks", made.num_unknown, len(pairs)
            )
        write_data(data, made)
    encoder = EncoderSettings(
        model=config.encoder.model,
        device="cuda" if config.training.use_gpu else config.encoder.device,
        dtype=config.encoder.dtype,
        max_tokens=min(config.training.max_tokens, config.encoder.max_tokens),
    )
    return train(TrainJob(artifact, data, encoder, config.s3, config.training), progress)


def require_accepted(reasons: Sequence[str], artifact: Artifact) -> None:
    """Raises ValidationFailed with the reasons."""
    if reasons:
        where = artifact.store.describe(artifact.key("report.json"))
        raise ValidationFailed(f"the new encoder was not accepted: {'; '.join(reasons)}; report: {where}")
