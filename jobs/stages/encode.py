"""Stage 2: texts → vectors, by Ray Data, one chunk of the fingerprint space at a time.

Chunks are ranges of the row fingerprint, so equal texts fall into one chunk and are encoded once, and what earlier
nights computed for a range is found by its name. A chunk's file holds only the rows that had no vector yet. It is
written whole or not at all, and never again: finished chunks survive a killed run.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.annotations import RayDeprecationWarning

from cluster.fanout import peak_memory_bytes, raise_failures
from cluster.resources import MALLOC
from cluster.session import cluster_resources, is_local
from indexing.encoder import EncoderSettings, encoder_digest, load_encoder, resolve_model
from indexing.errors import ConfigError, DataError
from indexing.key_ranges import KeyRange, key_range
from indexing.store import S3Settings, Store
from indexing.store.cache import default_cache_folder
from jobs.config.schema import RayConfig
from jobs.inputs.encoder import EncoderInput
from jobs.inputs.inputs import Inputs
from jobs.run import Run
from jobs.workspace.artifact import Artifact
from jobs.workspace.chunks import chunks_path, list_chunks, num_chunks, read_known, without_known, write_chunk
from jobs.workspace.records import Encoded, Prepared
from jobs.workspace.runs import read_parts, run_key
from jobs.workspace.vectors import VECTOR, vectors_of

logger = logging.getLogger(__name__)
ACTOR_RESTARTS = 8
"""Of one encoder. Ray Data's default is unlimited: an encoder that is killed again and again would hang the night."""


@dataclass(frozen=True)
class EncodeSettings:
    """What an encoding actor needs; plain data, so that Ray can ship it."""

    workspace: Store
    items_path: str
    """The folder of the prepared rows."""
    num_parts: int
    num_chunks: int
    chunks_path: str
    known_chunks: tuple[str, ...]
    """Keys of the chunks of earlier runs; listed once, by the driver."""
    encoder: EncoderSettings
    encoder_digest: str
    s3: S3Settings
    num_threads: int


def encode(run: Run, inputs: Inputs, prepared: Prepared) -> Encoded:
    """Runs the stage, or skips it when its artifact is complete; the record lists the chunks that hold the vectors.

    Without an encoder the vectors came with the rows, and are in the workspace already.
    """
    artifact = encoded_artifact(run.workspace, prepared.path)
    if done := artifact.read():
        return done
    if inputs.encoder is None:
        chunks = tuple(run_key(prepared.path, "vectors", number) for number in range(prepared.num_parts))
        encoded = Encoded(path=artifact.path, num_rows=prepared.num_rows, num_encoded=0, chunks=chunks)
    else:
        encoded = encode_texts(run, inputs.encoder, prepared, artifact.path)
    artifact.write(encoded)
    return encoded


def encoded_artifact(workspace: Store, prepared_path: str) -> Artifact[Encoded]:
    return Artifact(workspace, f"{prepared_path}/encoded", Encoded)


def encode_texts(run: Run, encoder: EncoderInput, prepared: Prepared, path: str) -> Encoded:
    num_actors, cpus, gpus = actor_pool(run.config.ray)
    chunks = chunks_path(encoder.fingerprint)
    settings = EncodeSettings(
        workspace=run.workspace,
        items_path=prepared.path,
        num_parts=prepared.num_parts,
        num_chunks=num_chunks(prepared.num_rows),
        chunks_path=chunks,
        known_chunks=list_chunks(run.workspace, chunks),
        encoder=encoder.settings,
        encoder_digest=encoder.digest,
        s3=run.config.s3,
        num_threads=cpus,
    )
    totals: Counter[str] = Counter()
    peak_memory = 0
    with run.stage("encode", prepared.num_rows) as bar:
        for row in run_actors(settings, num_actors, cpus, gpus):
            peak_memory = max(peak_memory, row.pop("peak_memory_bytes"))
            totals.update(row)
            bar.advance(row["num_rows"])
    return Encoded(path=path, chunks=list_chunks(run.workspace, chunks), peak_memory_bytes=peak_memory, **totals)


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


def run_actors(settings: EncodeSettings, num_actors: int, cpus: int, gpus: float) -> Iterator[dict[str, int]]:
    """One row of counts a chunk, as Ray Data's actors finish them. Raises what an actor raised after its retries."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised; the rest would break the bars
    # From items, not `range`: its read tasks would wait forever for the CPUs that the actors hold.
    chunks = ray.data.from_items(list(range(settings.num_chunks)), override_num_blocks=settings.num_chunks)
    with warnings.catch_warnings():
        # Restarts are limited by arguments that Ray 2.60 deprecates without a replacement.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        counts = chunks.map_batches(
            ChunkEncoder,
            fn_constructor_args=(settings,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(num_actors, settings.num_chunks)),
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=ACTOR_RESTARTS,
            max_task_retries=ACTOR_RESTARTS,
            runtime_env={"env_vars": MALLOC},
        )
    try:
        yield from counts.iter_rows()
    except ray.exceptions.RayError as error:
        raise_failures([error], what="encode", num_tasks=settings.num_chunks)


class ChunkEncoder:
    """The actor: holds the encoder, and turns the number of a chunk into the chunk's file."""

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
        counts = self.encode_chunk(int(batch["item"][0]))
        return {name: np.array([value]) for name, value in counts.items()}

    def encode_chunk(self, chunk: int) -> dict[str, int]:
        """Encodes what the chunk lacks and writes it; returns counts."""
        settings = self.settings
        keys = key_range(chunk, settings.num_chunks)
        workspace = settings.workspace
        rows = read_parts(workspace, settings.items_path, "texts", settings.num_parts, "fingerprint_key", keys)
        known = read_known(workspace, settings.known_chunks, keys)
        missing = without_known(rows, known)
        counts = {"num_rows": rows.num_rows, "num_encoded": 0, "num_tokens": 0, "num_truncated": 0}
        if missing.num_rows:
            vectors, counts_new = self._vectors(missing, known, keys)
            counts |= counts_new
            write_chunk(workspace, settings.chunks_path, chunk, settings.num_chunks, missing, vectors)
        return {**counts, "peak_memory_bytes": peak_memory_bytes()}

    def _vectors(self, missing: pa.Table, known: pa.Table, keys: KeyRange) -> tuple[np.ndarray, dict[str, int]]:
        """float16 (num_missing, dim): from a known row of the same fingerprint, else encoded, each text once."""
        distinct = missing["fingerprint"].combine_chunks().dictionary_encode()
        first_rows = np.unique(distinct.indices.to_numpy(), return_index=True)[1]
        found = pc.index_in(distinct.dictionary, value_set=known["fingerprint"].combine_chunks())
        is_new = pc.is_null(found).to_numpy(zero_copy_only=False)
        vectors = np.empty((len(first_rows), self.encoder.dim), np.float16)
        texts = missing["text"].take(pa.array(first_rows[is_new])).to_pylist()
        vectors[is_new] = self.encoder.encode(texts)
        stats = self.encoder.stats
        if len(texts) < len(first_rows):
            known = read_known(self.settings.workspace, self.settings.known_chunks, keys, [VECTOR])
            vectors[~is_new] = vectors_of(known.take(found.drop_null()))
        return vectors[distinct.indices.to_numpy()], {
            "num_encoded": len(texts),
            "num_tokens": stats.num_tokens,
            "num_truncated": stats.num_truncated,
        }
