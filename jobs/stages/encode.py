"""Stage 2: texts → vectors, as a streaming pipeline of Ray Data: tasks tokenise, encoders encode, tasks write.

Of a bucket only those rows are encoded whose vectors the base release does not have, equal texts once. The file of
their vectors is written whole or not at all, and never again: finished buckets survive a killed run.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from cluster.pipeline import Pool, through_actors
from cluster.session import cluster_memory, cluster_resources, is_local
from indexing.errors import ConfigError
from indexing.store import Store
from jobs.config.schema import RayConfig
from jobs.inputs.encoder import EncoderInput
from jobs.inputs.inputs import Inputs
from jobs.run import Run
from jobs.stages.encode_bucket import (
    BucketEncoder,
    EncodedBucket,
    EncodeSettings,
    read_tokeniser,
    tokenise_bucket,
    write_vectors,
)
from jobs.workspace.artifact import Artifact
from jobs.workspace.buckets import VECTORS, bucket_key
from jobs.workspace.records import Encoded, Prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """Memory to reserve, in bytes; 0 reserves none."""

    encoder_bytes: int
    task_bytes: int


NOTHING = Needs(0, 0)
ENCODER_BYTES, TASK_BYTES = 900_000_000, 350_000_000
"""Of the processes: their libraries, and what a batch takes. One with all-MiniLM-L6-v2 was measured at 1.1 GB."""
MAX_DIM = 1_024
"""Taken for the dimension where the configuration does not say it; few models have more."""


def encode(run: Run, inputs: Inputs, prepared: Prepared) -> Encoded:
    """Runs the stage, or skips it when its artifact is complete.

    Without an encoder the vectors came with the rows, and are in the buckets already.
    """
    artifact = encoded_artifact(run.workspace, prepared.path)
    if done := artifact.read():
        return done
    if inputs.encoder is None or not prepared.new_buckets:
        encoded = Encoded(path=artifact.path, num_rows=prepared.num_new, num_encoded=0)
    else:
        encoded = encode_texts(run, inputs.encoder, prepared, artifact.path)
    artifact.write(encoded)
    return encoded


def encoded_artifact(workspace: Store, prepared_path: str) -> Artifact[Encoded]:
    return Artifact(workspace, f"{prepared_path}/encoded", Encoded)


def encode_texts(run: Run, encoder: EncoderInput, prepared: Prepared, path: str) -> Encoded:
    needs = memory_needed(encoder, prepared) if run.config.ray.reserve_memory else NOTHING
    pool = encoder_pool(run.config.ray, needs)
    settings = EncodeSettings(
        workspace=run.workspace,
        path=prepared.path,
        encoder=encoder.settings,
        encoder_digest=encoder.digest,
        s3=run.config.s3,
        num_threads=pool.num_cpus,
    )
    done = {info.key for info in run.workspace.list(f"{prepared.path}/{VECTORS}-")}
    todo = [number for number in prepared.new_buckets if bucket_key(prepared.path, VECTORS, number) not in done]
    buckets: list[EncodedBucket] = []
    with run.stage("encode", prepared.num_new) as bar:
        for bucket in encode_buckets(settings, todo, pool):
            buckets.append(bucket)
            bar.advance(bucket.num_rows)
    return summarise(path, prepared, buckets)


def encode_buckets(settings: EncodeSettings, numbers: Sequence[int], pool: Pool) -> Iterator[EncodedBucket]:
    """In the order in which they are written. Raises what a task or an encoder raised after its retries."""
    if not numbers:
        return
    before = partial(tokenise_bucket, settings, read_tokeniser.remote(settings))
    after = partial(write_vectors, settings)
    yield from through_actors(numbers, before, BucketEncoder, (settings,), after, pool, what="encode")


def memory_needed(encoder: EncoderInput, prepared: Prepared) -> Needs:
    """For buckets half as large again as the average one."""
    rows = 3 * prepared.num_new // (2 * max(1, len(prepared.new_buckets)))
    num_numbers = rows * ((encoder.settings.dim or MAX_DIM) + encoder.settings.max_tokens)
    model_bytes = sum(file.blob.size_bytes for file in encoder.files)
    return Needs(ENCODER_BYTES + 2 * model_bytes + 8 * num_numbers, TASK_BYTES + 8 * num_numbers)


def encoder_pool(settings: RayConfig, needs: Needs = NOTHING) -> Pool:
    """The encoders that the connected cluster can hold at once, or as many as the configuration says.

    Raises ConfigError where this machine can never hold one; a cluster may yet grow, so there it is only logged.
    """
    resources = cluster_resources()
    num_cpus, num_gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    cpus = settings.cpus_per_actor
    gpus = settings.gpus_per_actor if settings.gpus_per_actor is not None else float(min(1, num_gpus))
    fit = int(min(num_cpus // cpus, num_gpus // gpus) if gpus else num_cpus // cpus)
    text = f"an encoder needs {cpus} CPUs and {gpus:g} GPUs (ray.cpus_per_actor, gpus_per_actor)"
    found = f"{num_cpus:g} and {num_gpus:g}"
    if needs.encoder_bytes:
        memory = cluster_memory()
        fit = min(fit, (memory - needs.task_bytes) // needs.encoder_bytes)
        text += f", and it and a task {(needs.encoder_bytes + needs.task_bytes) / 1e9:.1f} GB (ray.reserve_memory)"
        found += f", and {memory / 1e9:.1f} GB for them"
    if fit < 1:
        if is_local(settings.address):
            raise ConfigError(f"{text}, this machine has {found}")
        logger.warning("encode: %s, the cluster has %s: waiting until it has grown", text, found)
    most = settings.encode_actors or max(1, fit, settings.min_encode_actors or 1)
    leaves_cpus = num_cpus - most * cpus >= 1
    # Where they hold all CPUs, tasks run beside them: one tokenises some 50 times as fast as a CPU encodes.
    beside = most * cpus if gpus else 1 + most // 8
    return Pool(
        min_actors=settings.min_encode_actors or most,
        max_actors=most,
        num_cpus=cpus,
        num_gpus=gpus,
        task_cpus=1 if leaves_cpus else 0,
        max_tasks=None if leaves_cpus else beside,
        actor_bytes=needs.encoder_bytes or None,
        task_bytes=needs.task_bytes or None,
    )


def summarise(path: str, prepared: Prepared, buckets: Sequence[EncodedBucket]) -> Encoded:
    busy_s, idle_s = sum(bucket.busy_s for bucket in buckets), sum(bucket.idle_s for bucket in buckets)
    return Encoded(
        path=path,
        num_rows=prepared.num_new,
        num_encoded=sum(bucket.num_encoded for bucket in buckets),
        num_tokens=sum(bucket.num_tokens for bucket in buckets),
        num_truncated=sum(bucket.num_truncated for bucket in buckets),
        busy_share=busy_s / (busy_s + idle_s) if busy_s else None,
        peak_memory_bytes=max((bucket.peak_memory_bytes for bucket in buckets), default=0),
    )
