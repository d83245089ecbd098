"""The three steps of a bucket: its texts to tokens, by a task; these to vectors, by an encoder; their file, by a task.

Between them a bucket is one row, whose columns hold tables, so that nothing depends on how Ray Data cuts its blocks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from cluster.fanout import peak_memory_bytes
from indexing.encoder import EncoderSettings, encoder_digest, load_encoder, load_tokeniser, resolve_model
from indexing.errors import DataError
from indexing.store import S3Settings, Store
from indexing.store.cache import default_cache_folder
from jobs.workspace.buckets import IDS_COLUMNS, NEW, VECTORS, read_bucket_file, write_bucket_file
from jobs.workspace.vectors import VECTOR, vector_column

Tokenise = Callable[[Sequence[str]], pa.Table]


@dataclass(frozen=True)
class EncodeSettings:
    """What tasks and encoders need; plain data, so that Ray can ship it."""

    workspace: Store
    path: str
    """The folder of the prepared rows."""
    encoder: EncoderSettings
    encoder_digest: str
    s3: S3Settings
    num_threads: int

    def model_folder(self) -> Path:
        """Raises DataError where this worker has another model than the driver."""
        path = resolve_model(self.encoder.model, cache_dir=default_cache_folder(), s3=self.s3)
        if (digest := encoder_digest(path)) != self.encoder_digest:
            raise DataError(
                f"encoder.model: this worker has another {self.encoder.model} than the driver "
                f"({digest[:12]}, expected {self.encoder_digest[:12]}); install the same one on every node"
            )
        return path


@dataclass(frozen=True)
class EncodedBucket:
    """What became of a bucket."""

    num_rows: int
    num_encoded: int
    """Distinct texts."""
    num_tokens: int
    num_truncated: int
    busy_s: float
    """How long the encoder took for it."""
    idle_s: float
    """How long the encoder had waited for it, since its last one."""
    peak_memory_bytes: int
    """Of the largest of its three processes."""


@ray.remote(num_cpus=0)
def read_tokeniser(settings: EncodeSettings) -> Tokenise:
    """Loads the model too, so it is done once, and not by each of the tasks that tokenise."""
    return load_tokeniser(settings.model_folder(), settings.encoder)


@lru_cache(maxsize=1)
def held_tokeniser(tokeniser: "ray.ObjectRef[Tokenise]") -> Tokenise:
    """Kept by a worker for its next tasks."""
    return ray.get(tokeniser)


def tokenise_bucket(settings: EncodeSettings, tokeniser: "ray.ObjectRef[Tokenise]", number: int) -> pa.Table:
    """The new rows of a bucket, and of each text that they have its tokens, once."""
    rows = read_bucket_file(settings.workspace, settings.path, NEW, number)
    distinct = rows["fingerprint"].combine_chunks().dictionary_encode()
    first_rows = np.unique(distinct.indices.to_numpy(), return_index=True)[1]
    tokens = held_tokeniser(tokeniser)(rows["text"].take(pa.array(first_rows)).to_pylist())
    columns = {
        "number": [number],
        "rows": nested(rows.select(IDS_COLUMNS).append_column("text", distinct.indices)),
        "tokens": nested(tokens),
        "peak_memory_bytes": [peak_memory_bytes()],
    }
    return pa.table(columns)


class BucketEncoder:
    """The actor: holds the encoder, and turns the tokens of a bucket into vectors."""

    def __init__(self, settings: EncodeSettings) -> None:
        self.encoder = load_encoder(settings.model_folder(), settings.encoder, num_threads=settings.num_threads)
        self.ended: float | None = None

    def __call__(self, bucket: pa.Table) -> pa.Table:
        """The same bucket with float16 vectors of its texts, in their order, in place of the tokens."""
        started = time.monotonic()
        vectors = self.encoder.encode_tokens(unnested(bucket["tokens"]))
        ended, stats = time.monotonic(), self.encoder.stats
        columns = {
            **{name: bucket[name] for name in ("number", "rows")},
            "vectors": nested(pa.table({VECTOR: vector_column(vectors)})),
            "num_tokens": [stats.num_tokens],
            "num_truncated": [stats.num_truncated],
            "busy_s": [ended - started],
            "idle_s": [started - self.ended if self.ended else 0.0],
            "peak_memory_bytes": [max(peak_memory_bytes(), bucket["peak_memory_bytes"][0].as_py())],
        }
        self.ended = ended
        return pa.table(columns)


def write_vectors(settings: EncodeSettings, bucket: pa.Table) -> EncodedBucket:
    """Writes the vectors of all rows, whole or not at all."""
    rows, vectors = unnested(bucket["rows"]), unnested(bucket["vectors"])
    column = vectors[VECTOR].combine_chunks().take(rows["text"].combine_chunks())
    table = rows.select(IDS_COLUMNS).append_column(VECTOR, column)
    write_bucket_file(settings.workspace, settings.path, VECTORS, bucket["number"][0].as_py(), table)
    (counts,) = bucket.drop_columns(["number", "rows", "vectors"]).to_pylist()
    counts["peak_memory_bytes"] = max(counts["peak_memory_bytes"], peak_memory_bytes())
    return EncodedBucket(num_rows=len(rows), num_encoded=len(vectors), **counts)


def nested(table: pa.Table) -> pa.Array:
    """One value, which is the list of all rows."""
    rows = table.combine_chunks().to_struct_array().combine_chunks()
    return pa.LargeListArray.from_arrays([0, len(rows)], rows)


def unnested(column: pa.ChunkedArray) -> pa.Table:
    """The rows of such a value."""
    return pa.Table.from_struct_array(column.combine_chunks().flatten())
