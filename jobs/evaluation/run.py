"""The whole of an evaluation: each encoder over the full catalogue, and BM25."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from cluster.session import ray_session
from indexing.release.registry import encoder_url, newest_encoder
from jobs.config.schema import CollectionConfig
from jobs.evaluation.evaluate import compare, measure_bm25, measure_encoder
from jobs.evaluation.judgements import read_judgements
from jobs.evaluation.report import EvaluationReport
from jobs.inputs.beir import read_beir
from jobs.inputs.catalogue import PART_ROWS
from jobs.inputs.encoder import pin_encoder, read_encoder, with_encoder
from jobs.inputs.inputs import Inputs, read_inputs
from jobs.inputs.interactions import read_interactions
from jobs.inputs.shared import require_shared
from jobs.run import Run
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.parquet import parquet_bytes

NEW, INCUMBENT, BM25 = "new", "incumbent", "bm25"


def run_evaluation(run: Run, left_out: Mapping[str, int] = MappingProxyType({})) -> EvaluationReport:
    """The report of `encoder.model`, against the newest accepted encoder where that is another one, and BM25.

    `left_out`: what the report says of judgements that could not be used.
    """
    run = run.with_config(pin_encoder(run.config, run.store))
    config, inputs, parent = run.config, read_inputs(run), newest_encoder(run.store)
    limit = config.catalogue.max_bad_rows
    held_back = read_interactions(config.evaluation.interactions, config.s3, "evaluation.interactions", limit).rows
    log = None
    if config.training.interactions:
        log = read_interactions(config.training.interactions, config.s3, "training.interactions", limit).rows
    models = {NEW: config.encoder.model}
    if parent and inputs.encoder and parent.digest != inputs.encoder.digest:
        models[INCUMBENT] = encoder_url(run.store, parent)
    with ray_session(config.ray.address):
        require_shared(run, inputs.source)
        report = measure_all(run, inputs, models, held_back, log)
    return replace(report, left_out=dict(left_out))


def measure_all(
    run: Run, inputs: Inputs, models: Mapping[str, str], held_back: pa.Table, log: pa.Table | None
) -> EvaluationReport:
    """The report of the encoders in `models`, by name, and of BM25. `log`: what training saw, where that is known.

    No parent release: each encoder's shards are built whole.
    """
    inputs = inputs.following(None)
    judgements = read_judgements(run, inputs, held_back)
    seen = set(pc.unique(log["item_id"]).drop_null().to_pylist()) if log is not None else None
    rankers = {}
    for name, model in models.items():
        config = with_encoder(run.config, model)
        of_model = replace(inputs, encoder=read_encoder(config))
        rankers[name] = measure_encoder(run.with_config(config), of_model, judgements, seen)
    if run.config.evaluation.bm25:
        rankers[BM25] = {"exact": measure_bm25(run, inputs, judgements)}
    return compare(judgements, rankers, run.config.evaluation.seed)


def with_beir(run: Run, folder: Path, split: str) -> tuple[Run, dict[str, int]]:
    """(the run with catalogue and judgements of a data set in the BEIR layout, put into the workspace; which
    judgements are left out → their number).
    """
    beir = read_beir(folder, split)
    config, workspace = run.config, run.workspace
    prefix = f"beir/{fingerprint(str(folder.resolve()), split)}"
    for name, table in (("catalogue", beir.catalogue), ("interactions", beir.interactions)):
        workspace.put(f"{prefix}/{name}.parquet", parquet_bytes(table, row_group_size=PART_ROWS))
    config = replace(
        config,
        catalogue=replace(
            config.catalogue,
            path=f"{workspace.url}/{prefix}/catalogue.parquet",
            columns={},
            collections={"documents": CollectionConfig(item_types=["document"])},
            text={"default": "{title} {description}"},  # as BEIR joins them
        ),
        training=replace(config.training, interactions=None),
        evaluation=replace(config.evaluation, interactions=f"{workspace.url}/{prefix}/interactions.parquet"),
    )
    return run.with_config(config), beir.left_out
