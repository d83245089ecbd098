"""The whole of training: pairs and negatives → train → evaluate → accept; and evaluation alone."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.session import ray_session
from indexing.encoder import EncoderSettings, encoder_digest
from indexing.errors import ConfigError, DataError, ValidationFailed
from indexing.store import Store, open_store

from ..config import CollectionConfig, Config, fingerprint
from ..encode import local_model
from ..nightly import current_release
from ..progress import Progress
from ..source import PART_ROWS, Source, content_digest, list_parquet, scan_source
from ..workspace import Artifact, parquet_bytes
from .accept import why_not_accepted
from .beir import read_beir
from .data import log_pairs, make_data, write_data
from .evaluate import compare, measure_bm25, measure_encoder, read_judgements, with_encoder
from .interactions import read_interactions
from .negatives import Mined, mine
from .registry import AcceptedEncoder, accept, encoder_url, newest, pin_encoder
from .train import TrainJob, check_workers, train

logger = logging.getLogger(__name__)
FORMAT = 2
NEW, INCUMBENT, BM25 = "new", "incumbent", "bm25"
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
    entry = AcceptedEncoder(
        format_version=1,
        number=0,
        parent=parent.number if parent else None,
        digest="",
        base_digest=base_digest,
        interactions_fingerprint=data_fingerprint,
        catalogue_fingerprint=source.fingerprint,
        config_fingerprint=fingerprint(config.training, config.evaluation),
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
    name = fingerprint(
        FORMAT, base_digest, data_fingerprint, source.fingerprint, config.training, config.catalogue.text, miner
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
    settings = EncoderSettings(
        model=config.encoder.model,
        device="cuda" if config.training.use_gpu else config.encoder.device,
        dtype=config.encoder.dtype,
        max_tokens=min(config.training.max_tokens, config.encoder.max_tokens),
    )
    return train(TrainJob(artifact, data, settings, config.s3, config.training), progress)


def run_evaluation(config: Config, progress: Progress) -> dict[str, Any]:
    """The report of `encoder.model`, against the newest accepted encoder where that is another one, and BM25."""
    config = pin_encoder(config)
    store, source = open_store(config.store, config.s3), scan_source(config)
    held_back, parent = require_interactions(config, "evaluation"), newest(store)
    log = require_interactions(config, "training") if config.training.interactions else None
    models = {NEW: config.encoder.model}
    if parent and parent.digest != encoder_digest(local_model(config)):
        models[INCUMBENT] = encoder_url(store, parent)
    with ray_session(config.ray.address):
        return measure_all(config, source, models, held_back, log, progress)


def measure_all(
    config: Config,
    source: Source,
    models: Mapping[str, str],
    held_back: pa.Table,
    log: pa.Table | None,
    progress: Progress,
) -> dict[str, Any]:
    """The report of the encoders in `models`, by name, and of BM25. `log`: what training saw, where that is known."""
    judgements = read_judgements(config, source, held_back, progress)
    seen = set(log["item_id"].drop_null().to_pylist()) if log is not None else None
    rankers = {
        name: measure_encoder(with_encoder(config, model), judgements, seen, progress) for name, model in models.items()
    }
    if config.evaluation.bm25:
        rankers[BM25] = {"exact": measure_bm25(config, judgements, progress)}
    return compare(config, judgements, rankers)


def with_beir(config: Config, folder: Path, split: str) -> Config:
    """The configuration with catalogue and judgements of a data set in the BEIR layout, put into the workspace."""
    catalogue, interactions = read_beir(folder, split)
    workspace = open_store(config.workspace, config.s3)
    prefix = f"beir/{fingerprint(str(folder.resolve()), split)}"
    for name, table in (("catalogue", catalogue), ("interactions", interactions)):
        workspace.put(f"{prefix}/{name}.parquet", parquet_bytes(table, row_group_size=PART_ROWS))
    return replace(
        config,
        catalogue=replace(
            config.catalogue,
            path=f"{workspace.url}/{prefix}/catalogue.parquet",
            collections={"documents": CollectionConfig(item_types=["document"])},
            text={"default": "{title} {description}"},  # as BEIR joins them
        ),
        training=replace(config.training, interactions=None),
        evaluation=replace(config.evaluation, interactions=f"{workspace.url}/{prefix}/interactions.parquet"),
    )


def require_interactions(config: Config, section: str) -> pa.Table:
    """Raises ConfigError where the section names none."""
    path = getattr(config, section).interactions
    if path is None:
        raise ConfigError(f"{section}.interactions: expected a Parquet file of search logs, got none")
    return read_interactions(path, config.s3, f"{section}.interactions")


def interactions_fingerprint(config: Config, section: str) -> str:
    store, keys = list_parquet(getattr(config, section).interactions, config.s3, f"{section}.interactions")
    return fingerprint([(key, content_digest(store, key)) for key in keys])


def check_split(log: pa.Table, held_back: pa.Table) -> None:
    """Raises DataError where a query group is in both: then the evaluation would measure what was learned by heart."""
    both = sorted(set(log["query_group"].to_pylist()) & set(held_back["query_group"].to_pylist()))
    if both:
        raise DataError(
            f"evaluation.interactions: expected other query groups than training.interactions, got {len(both)} of the "
            f"same, such as {both[0]!r}"
        )


def require_accepted(reasons: Sequence[str], artifact: Artifact) -> None:
    """Raises ValidationFailed with the reasons."""
    if reasons:
        where = artifact.store.describe(artifact.key("report.json"))
        raise ValidationFailed(f"the new encoder was not accepted: {'; '.join(reasons)}; report: {where}")
