"""The whole rebuild on a real catalogue and a real S3 server: seconds and peak memory of each stage; the encode stage,
from Parquet to Parquet through Ray, against the bare encode loop on the same texts.

    python tests/benchmarks/bench_nightly.py [--rows 20000] [--out OUT.json]
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from bench_encode import CATALOGUES, MODEL
from rich.console import Console
from support.seaweedfs import SeaweedFS

from indexing.encoder import load_encoder
from indexing.release.codec import to_plain
from jobs.config.load import load_config
from jobs.inputs.encoder import read_encoder
from jobs.nightly import Outcome, run_night
from jobs.progress import Bar, Progress
from jobs.run import open_run
from jobs.run_record import stage_records

CORES = len(os.sched_getaffinity(0))


class StampedProgress(Progress):
    """Notes when how many rows of a stage were done, so that the start of Ray's actors can be left out of its rate."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True))
        self.stamps: dict[str, list[tuple[float, int]]] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "rows") -> Iterator[Bar]:
        stamps = self.stamps.setdefault(name, [])
        with super().stage(name, total, unit) as bar:
            yield _Stamping(bar, stamps)

    def steady_rate(self, name: str, num_workers: int) -> float:
        """Rows/s from the moment when each worker has done one piece."""
        start, *rest = self.stamps[name][num_workers - 1 :]
        return sum(rows for _, rows in rest) / (rest[-1][0] - start[0])


class _Stamping:
    def __init__(self, bar: Bar, stamps: list[tuple[float, int]]) -> None:
        self.bar, self.stamps = bar, stamps

    def advance(self, amount: int, note: str = "") -> None:
        self.stamps.append((time.monotonic(), amount))
        self.bar.advance(amount, note)


def run(num_rows: int | None, folder: Path) -> dict[str, Any]:
    """Runs nightly on the first `num_rows` rows (all by default); the workspace stays in `folder`."""
    config_path = write_config(num_rows, folder)
    with SeaweedFS() as server:
        os.environ.update(server.environment())
        server.create_bucket("bench")
        config = load_config(str(config_path))
        progress = StampedProgress()
        started = time.monotonic()
        outcome = run_night(open_run(config, progress), "publish")
        total_s = time.monotonic() - started
    stages = {stage.name: asdict(stage) for stage in stage_records(outcome, progress.seconds)}
    stage_rate = progress.steady_rate("encode", CORES)
    loop_rate = bare_loop_rate(config, outcome)
    return {
        "num_rows": outcome.prepared.num_rows,
        "total_s": total_s,
        "stages": stages,
        "collections": to_plain(outcome.validated.report.collections) if outcome.validated else None,
        "encode_rows_per_s": {"stage": stage_rate, "bare loop": loop_rate},
        "encode_stage_ratio": stage_rate / loop_rate,
    }


def write_config(num_rows: int | None, folder: Path) -> Path:
    """A configuration for the catalogue at hand, and the catalogue cut to `num_rows`."""
    source = next(path for path in CATALOGUES if path.exists())
    table = ds.dataset(source, format="parquet").to_table()
    catalogue = folder / "catalogue"
    catalogue.mkdir(parents=True)
    pq.write_table(table.slice(0, num_rows), catalogue / "items.parquet", row_group_size=20_000)
    kinds = sorted(set(table["item_type"].to_pylist()))
    config = {
        "name": "bench",
        "store": "s3://bench/releases",
        "workspace": str(folder / "workspace"),
        "catalogue": {"path": str(catalogue), "collections": {f"{kind}s": {"item_types": [kind]} for kind in kinds}},
        "encoder": {"model": MODEL},
    }
    path = folder / "bench.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def bare_loop_rate(config: Any, outcome: Outcome, num_texts: int = 16_000) -> float:
    """Texts/s of `Encoder.encode` alone, on all cores, on texts that the stage encoded too."""
    buckets = sorted(Path(config.workspace, outcome.prepared.path).glob("new-*.parquet"))
    texts = [text for bucket in buckets for text in pq.read_table(bucket, columns=["text"])["text"].to_pylist()]
    texts = texts[:num_texts]
    found = read_encoder(config)
    assert found is not None
    encoder = load_encoder(found.folder, found.settings, num_threads=CORES)
    encoder.encode(texts[:500])
    started = time.monotonic()
    for start in range(0, len(texts), 4096):
        encoder.encode(texts[start : start + 4096])
    return len(texts) / (time.monotonic() - started)


def read_vectors(folder: Path) -> np.ndarray:
    """float32 (num_items, dim) of unit norm: what the run in `folder` encoded, in a fixed order."""
    files = sorted(Path(folder, "workspace", "items").rglob("vectors-*.parquet"))
    columns = [pq.read_table(file, columns=["vector"])["vector"].combine_chunks() for file in files]
    vectors = np.concatenate([column.flatten().to_numpy().reshape(len(column), -1) for column in columns])
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, help="only the first rows of the catalogue")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        result = run(arguments.rows, Path(name))
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
