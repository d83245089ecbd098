"""Fine-tuning: search logs and the current encoder in, a sentence-transformers folder out, by Ray Train.

Everything lies in one artifact of the workspace: `data/` (pairs, texts, negatives), `checkpoints/`, `encoder/`, and the
curves of the run. A killed run resumes from its last checkpoint; so does a worker that Ray restarts.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cluster.resources import MALLOC
from cluster.session import ClusterUnavailable, cluster_resources, is_local
from indexing.encoder import EncoderSettings, encoder_files, resolve_model
from indexing.errors import ConfigError, NightcrateError
from indexing.store import S3Settings
from indexing.store.blobs import hash_file, upload_folder
from indexing.store.cache import default_cache_folder
from jobs.config.training import TrainingConfig
from jobs.progress import Bar, Progress
from jobs.training.encoder.batches import Steps
from jobs.training.encoder.curves import draw_curve, write_curve
from jobs.training.encoder.data import TrainingCounts, read_data
from jobs.training.encoder.loop import make_optimizer, run_steps, worker
from jobs.training.encoder.trainable import TrainableEncoder, blend
from jobs.workspace.artifact import Artifact

logger = logging.getLogger(__name__)
WORKER_RESTARTS = 3
CHECKPOINTS = "checkpoints"
CHECKPOINT_PARTS = ("encoder", "optimizer", "average")
AVERAGED_SHARE = 0.1
"""Of the steps: the weights of the result are averaged over them. Where learning rates are high, the average ranks
better than the last step: nDCG@10 0.247 -> 0.252 and 0.249 -> 0.255 on the queries of 130 held-back groups.
"""


@dataclass(frozen=True, kw_only=True)
class TrainedSteps:
    """The record of a training's artifact."""

    seconds: float
    steps: int
    loss: float | None = None
    """Of the last step; None where no step was left to take."""


@dataclass(frozen=True)
class TrainJob:
    """What a worker needs; plain data, so that Ray can ship it."""

    artifact: Artifact[TrainedSteps]
    data: Artifact[TrainingCounts]
    encoder: EncoderSettings
    s3: S3Settings
    training: TrainingConfig


def train(job: TrainJob, progress: Progress) -> TrainedSteps:
    """Runs the steps that are left. Raises what a worker raised."""
    if done := job.artifact.read("encoder/"):
        return done
    settings, events = job.training, Queue(actor_options={"num_cpus": 0})
    started = time.monotonic()
    try:
        with (
            progress.stage("train", settings.steps * settings.batch_pairs, "pairs") as bar,
            tempfile.TemporaryDirectory(prefix="nightcrate-") as folder,
            showing(events, bar) as outcome,
        ):
            run_workers(job, events, folder)
    finally:
        events.shutdown(force=True)
    if outcome.error is not None:
        raise outcome.error
    trained = TrainedSteps(seconds=time.monotonic() - started, steps=settings.steps, loss=outcome.loss)
    job.artifact.write(trained)
    return trained


def check_workers(settings: TrainingConfig, address: str | None) -> None:
    """Raises ConfigError where this machine can never hold the workers, for which Ray Train would wait forever.

    A cluster may yet grow, so there it is only logged.
    """
    found = cluster_resources()
    cpus, gpus = settings.num_workers * settings.cpus_per_worker, settings.num_workers * settings.use_gpu
    if cpus <= found.get("CPU", 0) and gpus <= found.get("GPU", 0):
        return
    text = f"training.num_workers: {settings.num_workers} workers need {cpus} CPUs and {gpus} GPUs"
    there = f"{found.get('CPU', 0):g} and {found.get('GPU', 0):g}"
    if is_local(address):
        raise ConfigError(f"{text}, this machine has {there}")
    logger.warning("%s, the cluster has %s: waiting until it has grown", text, there)


def run_workers(job: TrainJob, events: Queue, folder: str) -> None:
    """Raises ClusterUnavailable when workers are lost more often than `WORKER_RESTARTS`."""
    settings = job.training
    resources = {"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})}
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "events": events},
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers, use_gpu=settings.use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="nightcrate",
            storage_path=folder,  # Ray's own notes; checkpoints are ours, in the workspace
            worker_runtime_env={"env_vars": MALLOC},
            # mypy sees the class of the old API.
            failure_config=FailureConfig(max_failures=WORKER_RESTARTS, controller_failure_limit=WORKER_RESTARTS),  # type: ignore[call-arg]
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        reason = str(error).strip().split("\n")[-1]
        raise ClusterUnavailable(f"training: Ray lost workers and restarts did not help: {reason}") from error


@dataclass
class Outcome:
    """What the workers have reported so far."""

    error: NightcrateError | None = None
    loss: float | None = None


@contextmanager
def showing(events: Queue, bar: Bar) -> Iterator[Outcome]:
    """Moves the bar as the workers report their steps, while the block runs."""
    outcome = Outcome()

    def follow() -> None:
        done = 0
        while (event := events.get()) is not None:
            if isinstance(event, NightcrateError):
                outcome.error = event
            else:
                pairs, outcome.loss = event
                note = f"loss {outcome.loss:.3f}"
                bar.advance(max(0, pairs - done), note)  # a worker that resumes from a checkpoint repeats some steps
                done = max(done, pairs)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield outcome
    finally:
        events.put(None)
        thread.join(timeout=10)


def train_worker(arguments: dict[str, Any]) -> None:
    """On a worker. An expected error is sent, not raised: Ray would retry what can only fail again."""
    job, events = arguments["job"], arguments["events"]
    try:
        run_job(job, events)
    except NightcrateError as error:
        if worker()[0] == 0:
            events.put(error)


@dataclass
class TrainingState:
    """What steps change and checkpoints contain."""

    encoder: TrainableEncoder
    optimizer: torch.optim.Optimizer
    average: AveragedModel
    """Of the encoder's weights after each step, older ones falling by a factor of e every `AVERAGED_SHARE`."""
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    """(step, loss, in-batch accuracy, unix seconds) of each step so far."""

    @classmethod
    def begin(cls, encoder: TrainableEncoder, settings: TrainingConfig) -> "TrainingState":
        decay = 1 - 1 / max(1.0, AVERAGED_SHARE * settings.steps)
        average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        return cls(encoder, make_optimizer(encoder, settings), average)

    @property
    def averaged(self) -> TrainableEncoder:
        assert isinstance(self.average.module, TrainableEncoder)
        return self.average.module


def run_job(job: TrainJob, events: Queue) -> None:
    settings, rank = job.training, worker()[0]
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.cpus_per_worker)
    path = resolve_model(job.encoder.model, cache_dir=default_cache_folder(), s3=job.s3)
    encoder = TrainableEncoder(path, job.encoder, separate=settings.separate)
    old = {name: weight.detach().clone() for name, weight in encoder.named_parameters()} if settings.blend else {}
    state, steps = TrainingState.begin(encoder, settings), Steps(*read_data(job.data), settings)
    load_checkpoint(job.artifact, state)
    for done in advance(state, steps, settings):
        if rank == 0:
            events.put((done * settings.batch_pairs, state.curve[-1][1]))
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                save_checkpoint(job.artifact, state)
    if rank == 0:
        if settings.blend:
            blend(state.averaged, old, settings.blend)
        save_encoder(job.artifact, state.averaged)
        job.artifact.store.put(job.artifact.key("curve.csv"), write_curve(state.curve, settings.batch_pairs))
        job.artifact.store.put(job.artifact.key("curve.svg"), draw_curve(state.curve))


def advance(state: TrainingState, steps: Steps, settings: TrainingConfig) -> Iterator[int]:
    """Takes the steps that are left; yields how many are done after each."""
    for number, loss, accuracy in run_steps(state.encoder, state.optimizer, steps, settings, len(state.curve)):
        state.average.update_parameters(state.encoder)
        state.curve.append((number, loss, accuracy, time.time()))
        yield len(state.curve)


def save_checkpoint(artifact: Artifact[TrainedSteps], state: TrainingState) -> None:
    """The whole state; older ones are deleted once it is there."""
    key = artifact.key(f"{CHECKPOINTS}/{len(state.curve):08d}.pt")
    before = [info.key for info in artifact.store.list(artifact.key(f"{CHECKPOINTS}/"))]
    parts = {name: getattr(state, name).state_dict() for name in CHECKPOINT_PARTS}
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "state.pt")
        torch.save({**parts, "curve": state.curve}, path)
        artifact.store.upload(key, path, sha256=hash_file(path))
    for old in before:
        if old != key:
            artifact.store.delete(old)


def load_checkpoint(artifact: Artifact[TrainedSteps], state: TrainingState) -> None:
    """Sets `state`, which has just begun, to the last checkpoint, where there is one."""
    keys = [info.key for info in artifact.store.list(artifact.key(f"{CHECKPOINTS}/"))]
    if not keys:
        return
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "state.pt")
        artifact.store.download(keys[-1], path)
        found = torch.load(path, map_location=state.encoder.device, weights_only=True)
    for name in CHECKPOINT_PARTS:
        getattr(state, name).load_state_dict(found[name])
    state.curve = found["curve"]
    logger.info("training: resumes after %d steps", len(state.curve))


def save_encoder(artifact: Artifact[TrainedSteps], encoder: TrainableEncoder) -> None:
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as name:
        folder = Path(name)
        encoder.save(folder)
        upload_folder(artifact.store, artifact.key("encoder"), folder, encoder_files(folder))
