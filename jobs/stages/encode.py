"""Stage 2: texts → vectors, by Ray Data, one bucket at a time.

Of a bucket only those rows are encoded whose vectors the base release does not have, equal texts once. The file of
their vectors is written whole or not at all, and never again: finished buckets survive a killed run.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from cluster.fanout import peak_memory_bytes
from cluster.resources import MALLOC
from cluster.session import cluster_resources, is_local
from cluster.streaming import quiet_context, rows_of
from indexing.encoder import EncoderSettings, encoder_digest, load_encoder, resolve_model
from indexing.errors import ConfigError, DataError
from indexing.store import S3Settings, Store
from indexing.store.cache import default_cache_folder
from jobs.config.schema import RayConfig
from jobs.inputs.encoder import EncoderInput
from jobs.inputs.inputs import Inputs
from jobs.run import Run
from jobs.workspace.artifact import Artifact
from jobs.workspace.buckets import IDS_COLUMNS, NEW, VECTORS, bucket_key, read_bucket_file, write_bucket_file
from jobs.workspace.records import Encoded, Prepared
from jobs.workspace.vectors import VECTOR, vector_column

logger = logging.getLogger(__name__)
ACTOR_RESTARTS = 8
"""Of one encoder. Ray Data's default is unlimited: an encoder that is killed again and again would hang the night."""


@dataclass(frozen=True)
class EncodeSettings:
    """What an encoding actor needs; plain data, so that Ray can ship it."""

    workspace: Store
    path: str
    """The folder of the prepared rows."""
    encoder: EncoderSettings
    encoder_digest: str
    s3: S3Settings
    num_threads: int


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
    num_actors, cpus, gpus = actor_pool(run.config.ray)
    settings = EncodeSettings(
        workspace=run.workspace,
        path=prepared.path,
        encoder=encoder.settings,
        encoder_digest=encoder.digest,
        s3=run.config.s3,
        num_threads=cpus,
    )
    done = {info.key for info in run.workspace.list(f"{prepared.path}/{VECTORS}-")}
    buckets = [number for number in prepared.new_buckets if bucket_key(prepared.path, VECTORS, number) not in done]
    totals: Counter[str] = Counter(num_encoded=0)
    peak_memory = 0
    with run.stage("encode", prepared.num_new) as bar:
        for row in run_actors(settings, buckets, num_actors, cpus, gpus) if buckets else ():
            peak_memory = max(peak_memory, row.pop("peak_memory_bytes"))
            bar.advance(row.pop("num_rows"))
            totals.update(row)
    return Encoded(path=path, num_rows=prepared.num_new, peak_memory_bytes=peak_memory, **totals)


def actor_pool(settings: RayConfig) -> tuple[int, int, float]:
    """(actors, CPUs of each, GPUs of each) that the connected cluster can hold at once.

    Raises ConfigError where this machine can never hold one; a cluster may yet grow, so there it is only logged.
    """
    resources = cluster_resources()
    num_gpus = resources.get("GPU", 0)
    gpus = settings.gpus_per_actor if settings.gpus_per_actor is not None else float(min(1, num_gpus))
    fit_cpu = int(resources.get("CPU", 1) // settings.cpus_per_actor)
    fit = min(fit_cpu, int(num_gpus // gpus)) if gpus else fit_cpu
    if not fit:
        text = f"an encoder needs {settings.cpus_per_actor} CPUs and {gpus:g} GPUs (ray.cpus_per_actor, gpus_per_actor)"
        found = f"{resources.get('CPU', 0):g} and {num_gpus:g}"
        if is_local(settings.address):
            raise ConfigError(f"{text}, this machine has {found}")
        logger.warning("encode: %s, the cluster has %s: waiting until it has grown", text, found)
    return settings.encode_actors or max(1, fit), settings.cpus_per_actor, gpus


def run_actors(
    settings: EncodeSettings, buckets: Sequence[int], num_actors: int, cpus: int, gpus: float
) -> Iterator[dict[str, int]]:
    """One row of counts a bucket, as Ray Data's actors finish them. Raises what an actor raised after its retries."""
    with quiet_context():
        # From items, not `range`: its read tasks would wait forever for the CPUs that the actors hold.
        numbers = ray.data.from_items(list(buckets), override_num_blocks=len(buckets))
        counts = numbers.map_batches(
            BucketEncoder,
            fn_constructor_args=(settings,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(buckets))),
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=ACTOR_RESTARTS,
            runtime_env={"env_vars": MALLOC},
        )
        yield from rows_of(counts, what="encode", num_tasks=len(buckets))


class BucketEncoder:
    """The actor: holds the encoder, and turns the number of a bucket into the file of its vectors."""

    def __init__(self, settings: EncodeSettings) -> None:
        path = resolve_model(settings.encoder.model, cache_dir=default_cache_folder(), s3=settings.s3)
        if (digest := encoder_digest(path)) != settings.encoder_digest:
            raise DataError(
                f"encoder.model: this worker has another {settings.encoder.model} than the driver "
                f"({digest[:12]}, expected {settings.encoder_digest[:12]}); install the same one on every node"
            )
        self.settings = settings
        self.encoder = load_encoder(path, settings.encoder, num_threads=settings.num_threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        counts = self.encode_bucket(int(batch["item"][0]))
        return {name: np.array([value]) for name, value in counts.items()}

    def encode_bucket(self, number: int) -> dict[str, int]:
        """Encodes the new rows of a bucket, each text once, and writes their vectors as float16; returns counts."""
        workspace, path = self.settings.workspace, self.settings.path
        rows = read_bucket_file(workspace, path, NEW, number)
        distinct = rows["fingerprint"].combine_chunks().dictionary_encode()
        first_rows = np.unique(distinct.indices.to_numpy(), return_index=True)[1]
        vectors = self.encoder.encode(rows["text"].take(pa.array(first_rows)).to_pylist()).astype(np.float16)
        column = vector_column(vectors[distinct.indices.to_numpy()])
        write_bucket_file(workspace, path, VECTORS, number, rows.select(IDS_COLUMNS).append_column(VECTOR, column))
        stats = self.encoder.stats
        return {
            "num_rows": rows.num_rows,
            "num_encoded": len(first_rows),
            "num_tokens": stats.num_tokens,
            "num_truncated": stats.num_truncated,
            "peak_memory_bytes": peak_memory_bytes(),
        }
