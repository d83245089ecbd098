"""Prints the busy share of two encoders with a logical GPU each, which take a second for a bucket, over a slow store.

A Ray of its own: `python tests/support/busy_encoders.py FOLDER`.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

import jobs.stages.encode
from indexing.encoder import EncoderSettings
from indexing.encoder.settings import EncodeStats
from indexing.encoder.tokens import TOKENISED
from indexing.store import S3Settings
from indexing.store.local import LocalStore
from jobs.config.schema import RayConfig
from jobs.stages.encode import encode_buckets, encoder_pool
from jobs.stages.encode_bucket import BucketEncoder, EncodeSettings
from jobs.workspace.buckets import NEW, write_bucket_file

FORWARD_S, REQUEST_S = 1.0, 0.3
NUM_BUCKETS, NUM_ROWS = 12, 50
FOLDER = Path(sys.argv[1])


class SlowStore(LocalStore):
    def get(self, key: str) -> bytes:
        time.sleep(REQUEST_S)
        FOLDER.joinpath(f"read-{key.replace('/', '-')}").touch()
        return super().get(key)

    def put(self, key: str, data: bytes) -> None:
        time.sleep(REQUEST_S)
        super().put(key, data)


class Sleeping:
    """In place of an encoder."""

    stats = EncodeStats()

    def encode_tokens(self, tokens: pa.Table) -> np.ndarray:
        time.sleep(FORWARD_S)
        return np.ones((len(tokens), 8), np.float16)


class SleepingEncoder(BucketEncoder):
    def __init__(self, settings: EncodeSettings) -> None:
        """As a model takes longer to load than the first buckets to be read, on a machine that has time for it."""
        while len(list(FOLDER.glob("read-*"))) < NUM_BUCKETS // 2:
            time.sleep(0.02)
        self.encoder, self.ended = Sleeping(), None  # type: ignore[assignment]


@ray.remote(num_cpus=0)
def read_tokeniser(settings: EncodeSettings) -> object:
    def tokenise(texts: Sequence[str]) -> pa.Table:
        return pa.table([range(len(texts)), [[1, 2]] * len(texts), [False] * len(texts)], schema=TOKENISED)

    return tokenise


def main() -> None:
    columns = {name: [f"{name} {number}" for number in range(NUM_ROWS)] for name in ("collection", "item_id", "text")}
    columns |= {"id_key": range(NUM_ROWS), "fingerprint": [bytes([number]) for number in range(NUM_ROWS)]}
    for number in range(NUM_BUCKETS):
        write_bucket_file(LocalStore(FOLDER), "items", NEW, number, pa.table(columns))
    jobs.stages.encode.read_tokeniser = read_tokeniser  # type: ignore[assignment]
    jobs.stages.encode.BucketEncoder = SleepingEncoder  # type: ignore[misc]
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    settings = EncodeSettings(SlowStore(FOLDER), "items", EncoderSettings(model=""), "", S3Settings(), 1)
    buckets = list(encode_buckets(settings, range(NUM_BUCKETS), encoder_pool(RayConfig())))
    assert len(buckets) == NUM_BUCKETS
    busy_s, idle_s = sum(bucket.busy_s for bucket in buckets), sum(bucket.idle_s for bucket in buckets)
    print(busy_s / (busy_s + idle_s))


if __name__ == "__main__":
    main()
