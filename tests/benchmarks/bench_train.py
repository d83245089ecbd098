"""Training on a real catalogue and real interactions: pairs/s and quality against sentence-transformers' own trainer at
equal steps, batches and data; and cross-validated quality over the groups of all interactions.

    python tests/benchmarks/bench_train.py [--peer-steps 100] [--folds 5] [--distractors 20000] [--training JSON]

Needs a catalogue and interactions in the project's contract (`--catalogue`, `--interactions FILE [FILE …]`).
"""

import argparse
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_encode import CATALOGUES, MODEL
from rich.console import Console
from support.sources import scan

from cluster.session import ray_session
from indexing.dense.exact import exact_search
from indexing.encoder import EncoderSettings, load_encoder, resolve_model
from indexing.store import open_store
from indexing.store.cache import default_cache_folder
from jobs.config.load import load_config
from jobs.config.schema import Config
from jobs.config.training import TrainingConfig
from jobs.evaluation.metrics import Ranking, measure, paired_bootstrap, slice_relevant
from jobs.inputs.interactions import read_interactions
from jobs.inputs.items import scan_items
from jobs.inputs.rows import row_rules
from jobs.progress import Progress
from jobs.run import Run, open_run
from jobs.training.encoder.batches import Steps
from jobs.training.encoder.data import TrainingCounts, TrainingData, log_pairs, make_data, write_data
from jobs.training.encoder.negatives import Mined
from jobs.training.encoder.sampler import split_groups
from jobs.training.encoder.train import TrainedSteps, TrainJob, train
from jobs.workspace.artifact import Artifact

log = logging.getLogger(__name__)
TRAINING = {
    "steps": 320,
    "learning_rate": 2e-4,
    "shares": {"clicks": 0.9, "title_creator": 0.1},
    "cpus_per_worker": torch.get_num_threads(),
}
METRICS = ("nDCG@10", "hit@10", "recall@100")
DEPTH = 300
NAME, PEER = "nightcrate", "sentence-transformers"


def make_config(folder: Path, catalogue: Path, training: dict[str, Any]) -> Config:
    path = folder / "config.yaml"
    collections = {"tracks": {"item_types": ["track"]}, "shows": {"item_types": ["show"]}}
    values = {"name": "bench", "store": str(folder / "store"), "workspace": str(folder / "workspace")}
    text = {"default": "{title} — {creators} — {parent_title} — {description}"}
    section = {"path": str(catalogue), "collections": collections, "text": text}
    path.write_text(json.dumps({**values, "catalogue": section, "encoder": {"model": MODEL}, "training": training}))
    return load_config(str(path))


def quiet_run(config: Config) -> Run:
    return open_run(config, Progress(Console(stderr=True)))


def run_training(config: Config, data: TrainingData, name: str) -> tuple[Path, TrainedSteps]:
    """The folder of the trained encoder, and what the training says of itself."""
    store = open_store(config.workspace)
    artifact = Artifact(store, name, TrainedSteps)
    inputs = Artifact(store, f"{name}/data", TrainingCounts)
    write_data(inputs, data)
    encoder = EncoderSettings(model=config.encoder.model, max_tokens=config.training.max_tokens)
    trained = train(TrainJob(artifact, inputs, encoder, config.s3, config.training), Progress(Console(stderr=True)))
    return Path(config.workspace, name, "encoder"), trained


def train_peer(data: TrainingData, settings: TrainingConfig, model: Path, folder: Path) -> float:
    """Seconds of sentence-transformers' trainer with MultipleNegativesRankingLoss, on the same pairs; its defaults
    otherwise. The encoder is in `folder`/peer.
    """
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    steps = Steps(data.pairs, data.items, data.hard, settings)
    rows = np.concatenate([steps.sampler.sample(number, settings.batch_pairs) for number in range(settings.steps)])
    texts = data.items["text"].to_pylist()
    anchors = data.pairs["query"].take(pa.array(rows)).to_pylist()
    dataset = Dataset.from_dict({"anchor": anchors, "positive": [texts[item] for item in steps.items[rows]]})
    encoder = SentenceTransformer(str(model), device="cpu")
    encoder.max_seq_length = settings.max_tokens
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "notes"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_pairs,
        learning_rate=settings.learning_rate,
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(encoder, scale=1 / settings.temperature)
    trainer = SentenceTransformerTrainer(model=encoder, args=arguments, train_dataset=dataset, loss=loss)
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    encoder.save_pretrained(str(folder / "peer"), create_model_card=False)
    return seconds


def thin_out(items: pa.Table, logs: list[pa.Table], distractors: int | None) -> pa.Table:
    """The items of the last log, and `distractors` others; all by default."""
    if distractors is None:
        return items
    is_relevant = np.isin(np.array(items["item_id"].to_pylist()), np.array(logs[-1]["item_id"].to_pylist()))
    others = np.random.default_rng(0).permutation(np.flatnonzero(~is_relevant))[:distractors]
    return items.take(pa.array(np.sort(np.concatenate([np.flatnonzero(is_relevant), others]))))


class Judge:
    """Retrieval over all items of the catalogue by exact search."""

    def __init__(self, items: pa.Table) -> None:
        self.texts, self.ids = items["text"].to_pylist(), np.array(items["item_id"].to_pylist(), object)

    def vectors(self, model: Path) -> np.ndarray:
        return self._load(model).encode(self.texts)

    def _load(self, model: Path) -> Any:
        return load_encoder(model, EncoderSettings(model=str(model)), num_threads=torch.get_num_threads())

    def measure(
        self, model: Path, held_back: pa.Table, seen: set[str], vectors: np.ndarray | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """Part → metric → float64 (num_queries,), queries sorted by group and text."""
        keys = sorted(set(zip(held_back["query_group"].to_pylist(), held_back["query"].to_pylist(), strict=True)))
        names = [f"{group}\0{query}" for group, query in keys]
        relevant: dict[str, set[str]] = {}
        columns = (held_back[name].to_pylist() for name in ("query_group", "query", "item_id"))
        for group, query, item in zip(*columns, strict=True):
            relevant.setdefault(f"{group}\0{query}", set()).add(item)
        encoder = self._load(model)
        vectors = encoder.encode(self.texts) if vectors is None else vectors
        rows, _ = exact_search(vectors, encoder.encode([query for _, query in keys], kind="query"), DEPTH)
        ranking = Ranking(queries=names, item_ids=self.ids[rows])
        unseen = slice_relevant(ranking, relevant, set(self.ids.tolist()) - seen)
        return {"all": measure(ranking, relevant), "unseen": measure(*unseen)}


def cross_validate(
    config: Config, interactions: pa.Table, num_folds: int, judge: Judge, model: Path, seed: int = 7
) -> dict[str, Any]:
    """Each group is judged by the encoder of the fold that did not train on it."""
    folds = split_groups(interactions["query_group"], num_folds, seed)
    run, source, before = quiet_run(config), scan(config), judge.vectors(model)
    rules = row_rules(config, source)
    parts: dict[str, list[dict[str, dict[str, np.ndarray]]]] = {"trained": [], "zero-shot": []}
    groups: list[str] = []
    seconds = []
    for fold in range(num_folds):
        train_log, held_back = (interactions.filter(pa.array(mask)) for mask in (folds != fold, folds == fold))
        data = make_data(run, source, rules, log_pairs(train_log), Mined())
        folder, summary = run_training(config, data, f"fold-{fold}")
        seen = set(train_log["item_id"].to_pylist())
        parts["trained"].append(judge.measure(folder, held_back, seen))
        parts["zero-shot"].append(judge.measure(model, held_back, seen, before))
        groups += [
            group
            for group, _ in sorted(
                set(zip(held_back["query_group"].to_pylist(), held_back["query"].to_pylist(), strict=True))
            )
        ]
        seconds.append(summary.seconds)
        log.info("fold %d: %s", fold, {name: means(values[-1]) for name, values in parts.items()})
    together = {
        name: {
            part: {metric: np.concatenate([fold[part][metric] for fold in found]) for metric in METRICS}
            for part in ("all", "unseen")
        }
        for name, found in parts.items()
    }
    return {"seconds": seconds, **compare(together, groups)}


def means(parts: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    return {
        f"{part} {name}": round(float(np.nanmean(values[name])), 4)
        for part, values in parts.items()
        for name in METRICS
    }


def compare(found: dict[str, dict[str, dict[str, np.ndarray]]], groups: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {name: means(parts) for name, parts in found.items()}
    result["ratio"] = {name: value / result["zero-shot"][name] for name, value in result["trained"].items()}
    interval = paired_bootstrap(found["trained"]["all"]["nDCG@10"], found["zero-shot"]["all"]["nDCG@10"], groups)
    result["nDCG@10 difference"] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = CATALOGUES[0].parent
    parser.add_argument("--catalogue", type=Path, default=CATALOGUES[0])
    parser.add_argument(
        "--interactions",
        type=Path,
        nargs="+",
        default=[shared / "interactions" / name for name in ("train.parquet", "dev.parquet")],
    )
    parser.add_argument("--peer-steps", type=int, default=100, help="steps of the comparison; 0 leaves it out")
    parser.add_argument("--folds", type=int, default=5, help="0 leaves cross-validation out")
    parser.add_argument("--distractors", type=int, help="judge among the logs' items and only so many others")
    parser.add_argument("--training", type=json.loads, default={}, metavar="JSON", help="laid over the settings above")
    parser.add_argument("--out", type=Path, metavar="JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in (__name__, "jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    logs = [
        read_interactions(str(path), None, "interactions", lambda num_rows: 0).rows for path in arguments.interactions
    ]
    model = resolve_model(MODEL, cache_dir=default_cache_folder())
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ray_session("local"):
        config = make_config(Path(name), arguments.catalogue, TRAINING | arguments.training)
        source = scan(config)
        rules = row_rules(config, source)
        everything = scan_items(quiet_run(config), source, rules, pa.array([], pa.string()), 1 << 62)
        judge = Judge(thin_out(everything, logs, arguments.distractors))
        if arguments.peer_steps:
            result["peer"] = compare_with_peer(config, logs, arguments.peer_steps, judge, model, Path(name))
            log.info("%s", json.dumps(result["peer"]))
        if arguments.folds:
            result["cross-validation"] = cross_validate(config, pa.concat_tables(logs), arguments.folds, judge, model)
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def compare_with_peer(
    config: Config, logs: list[pa.Table], num_steps: int, judge: Judge, model: Path, folder: Path
) -> dict[str, Any]:
    """Both train on the first log and are judged by the last, over all items."""
    settings = replace(config.training, steps=num_steps, num_negatives=0, shares={"clicks": 1.0})
    config = replace(config, training=settings)
    source = scan(config)
    data = make_data(quiet_run(config), source, row_rules(config, source), log_pairs(logs[0]), Mined())
    path, summary = run_training(config, data, "against-peer")
    seconds = {NAME: summary.seconds, PEER: train_peer(data, settings, model, folder)}
    seen = set(logs[0]["item_id"].to_pylist())
    return {
        "steps": num_steps,
        "pairs_per_s": {name: num_steps * settings.batch_pairs / value for name, value in seconds.items()},
        "ratio": seconds[PEER] / seconds[NAME],
        NAME: means(judge.measure(path, logs[-1], seen)),
        PEER: means(judge.measure(folder / "peer", logs[-1], seen)),
    }


if __name__ == "__main__":
    main()
