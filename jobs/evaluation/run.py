"""The whole of an evaluation: each encoder over the full catalogue, and BM25."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.session import ray_session
from indexing.encoder import encoder_digest
from indexing.release.registry import encoder_url, newest
from indexing.store import open_store
from jobs.config.schema import CollectionConfig, Config
from jobs.evaluation.evaluate import compare, measure_bm25, measure_encoder
from jobs.evaluation.judgements import read_judgements
from jobs.inputs.beir import read_beir
from jobs.inputs.catalogue import PART_ROWS, Source, scan_source
from jobs.inputs.encoder import local_model, pin_encoder, with_encoder
from jobs.inputs.interactions import require_interactions
from jobs.progress import Progress
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.runs import parquet_bytes

NEW, INCUMBENT, BM25 = "new", "incumbent", "bm25"


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
