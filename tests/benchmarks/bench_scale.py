"""How time and memory grow: synthetic vectors, clustered as embeddings are, through build, validate and publish.

    python tests/benchmarks/bench_scale.py [--rows 100000 300000 1000000] [--dim 384] [--out OUT.json]

For each size: seconds of the stages, peak memory of the largest worker and of the whole machine, bytes, recall, and
the build against plain hnswlib on all cores. At the end, a power law fitted to each.
"""

import argparse
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from indexing.dense.params import IndexParams
from indexing.key_ranges import num_shards
from indexing.store.s3 import PART_BYTES
from jobs.config.load import load_config
from jobs.config.schema import IndexConfig
from jobs.nightly import run_night
from jobs.progress import Progress
from jobs.run import open_run
from jobs.run_record import stage_records

log = logging.getLogger(__name__)
CORES = len(os.sched_getaffinity(0))
BLOCK_ROWS = 50_000
ROWS_PER_CLUSTER = 200
SPREAD = 0.7
"""Length of the noise around a cluster's centre, which has length 1: neighbours are then at cosines of 0.6 to 0.8, as
those of all-MiniLM-L6-v2 are on catalogue texts."""


def run(num_rows: int, dim: int, folder: Path) -> dict[str, Any]:
    write_vectors(num_rows, dim, folder)
    config_path = folder / "scale.yaml"
    config_path.write_text(
        json.dumps(
            {
                "name": "synthetic",
                "store": f"file://{folder}/store",
                "workspace": f"file://{folder}/workspace",
                "catalogue": {"collections": {"items": {"item_types": ["item"]}}},
                "vectors": {"path": f"{folder}/vectors.npy", "ids": f"{folder}/ids.parquet"},
            }
        )
    )
    progress = Progress(Console(stderr=True))
    with peak_of_machine() as used:
        outcome = run_night(open_run(load_config(str(config_path)), progress), "publish")
    assert outcome.published is not None
    release = outcome.published.release
    plain_s = build_plain(folder / "vectors.npy")
    return {
        "num_rows": num_rows,
        "seconds": progress.seconds,
        "worker_bytes": max(stage.peak_memory_bytes for stage in stage_records(outcome, progress.seconds)),
        "machine_bytes": max(used),
        "release_bytes": release.size_bytes,
        "num_shards": sum(len(collection.shards) for collection in release.collections),
        "recall_at_10": release.validation["items"]["items"]["recall_at_10"],
        "ef_search": release.collections[0].ef_search,
        "plain_hnswlib_s": plain_s,
        "build_ratio": progress.seconds["build"] / plain_s,
    }


def write_vectors(num_rows: int, dim: int, folder: Path) -> None:
    """float32 unit vectors around random centres, block by block, and ids."""
    generator = np.random.default_rng(0)
    num_clusters = max(1, num_rows // ROWS_PER_CLUSTER)
    centres = generator.normal(size=(num_clusters, dim)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (num_rows, dim))
    for start in range(0, num_rows, BLOCK_ROWS):
        size = min(BLOCK_ROWS, num_rows - start)
        noise = generator.normal(size=(size, dim)).astype(np.float32) * np.float32(SPREAD / np.sqrt(dim))
        block = centres[generator.integers(num_clusters, size=size)] + noise
        vectors[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    vectors.flush()
    ids = [f"item-{row:09}" for row in range(num_rows)]
    pq.write_table(pa.table({"item_id": ids}), folder / "ids.parquet", row_group_size=BLOCK_ROWS)


def build_plain(path: Path) -> float:
    vectors = np.load(path, mmap_mode="r")
    index = hnswlib.Index("ip", vectors.shape[1])
    params = IndexParams()
    index.init_index(len(vectors), M=params.M, ef_construction=params.ef_construction, random_seed=params.seed)
    started = time.monotonic()
    index.add_items(np.asarray(vectors), num_threads=CORES)
    return time.monotonic() - started


@contextmanager
def peak_of_machine() -> Iterator[list[int]]:
    """Memory of the whole machine that the block takes, sampled twice a second, in bytes."""
    before, used, stop = available_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            used.append(before - available_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield used
    finally:
        stop.set()
        thread.join()


def available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def fit(results: list[dict[str, Any]]) -> dict[str, float]:
    """The exponent by which each figure grows with the number of rows, by least squares of the logarithms.

    Of the build, core-seconds: a single shard keeps one core busy, whatever the machine has.
    """
    rows = np.log([result["num_rows"] for result in results])
    series = {
        "build_core_s": [result["seconds"]["build"] * min(CORES, result["num_shards"]) for result in results],
        "validate_s": [result["seconds"]["validate"] for result in results],
        "plain_hnswlib_s": [result["plain_hnswlib_s"] for result in results],
        "worker_bytes": [result["worker_bytes"] for result in results],
        "release_bytes": [result["release_bytes"] for result in results],
    }
    return {name: float(np.polyfit(rows, np.log(values), 1)[0]) for name, values in series.items()}


def project(result: dict[str, Any], num_rows: int, encode_rate: float) -> dict[str, float]:
    """What `num_rows` rows cost, by the rates of the largest size that was measured.

    `encode_rate` is rows/s of one core, as bench_nightly measures it. Build and validate are linear in the number of
    shards: a shard is one task, which knows of no other.
    """
    scale = num_rows / result["num_rows"]
    shards = num_shards(num_rows, IndexConfig().rows_per_shard)
    release_bytes = result["release_bytes"] * scale
    return {
        "encode_core_h": num_rows / encode_rate / 3600,
        "build_core_h": result["seconds"]["build"] * CORES * scale / 3600,
        "validate_core_h": result["seconds"]["validate"] * CORES * scale / 3600,
        "release_bytes": release_bytes,
        "put_requests": release_bytes / PART_BYTES + 5 * shards,
        "head_requests": 9 * shards,
    }


def print_projection(result: dict[str, Any], encode_rate: float) -> None:
    print(f"\n{'rows':>12}  encode core-h  build core-h  validate core-h  release GB  PUTs  HEADs")
    for num_rows in (10_000_000, 100_000_000):
        need = project(result, num_rows, encode_rate)
        print(
            f"{num_rows:>12,}{need['encode_core_h']:>15.1f}{need['build_core_h']:>14.1f}{need['validate_core_h']:>17.1f}"
            f"{need['release_bytes'] / 1e9:>12.1f}{need['put_requests']:>6.0f}{need['head_requests']:>7.0f}"
        )


def print_table(results: list[dict[str, Any]]) -> None:
    print("synthetic vectors")
    print(
        f"{'rows':>10}{'shards':>8}{'build s':>9}{'plain s':>9}{'ratio':>7}{'validate s':>12}{'publish s':>11}", end=""
    )
    print(f"{'worker GiB':>12}{'machine GiB':>13}{'release GB':>12}{'recall@10':>11}{'ef':>5}")
    for result in results:
        seconds = result["seconds"]
        print(
            f"{result['num_rows']:>10,}{result['num_shards']:>8}{seconds['build']:>9.1f}{result['plain_hnswlib_s']:>9.1f}"
            f"{result['build_ratio']:>7.2f}{seconds['validate']:>12.1f}{seconds['publish']:>11.1f}"
            f"{result['worker_bytes'] / 2**30:>12.2f}{result['machine_bytes'] / 2**30:>13.2f}"
            f"{result['release_bytes'] / 1e9:>12.2f}{result['recall_at_10']:>11.4f}{result['ef_search']:>5}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--encode-rate", type=float, default=200.0, help="rows/s of one core")
    parser.add_argument("--out", type=Path, metavar="JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("jobs").setLevel(logging.INFO)
    results = []
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            results.append(run(num_rows, arguments.dim, Path(name)))
        print_table(results[-1:])
    exponents = fit(results) if len(results) > 1 else {}
    if arguments.out:
        arguments.out.write_text(json.dumps({"sizes": results, "exponents": exponents}, indent=1) + "\n")
    print_table(results)
    for name, exponent in exponents.items():
        print(f"{name:18} grows as rows^{exponent:.2f}")
    print_projection(results[-1], arguments.encode_rate)


if __name__ == "__main__":
    main()
