"""All benchmarks, one after the other, against the peers in the same run; writes JSON and prints what was promised.

make bench        or        python tests/benchmarks/run.py --out build/bench.json [--rows 20000]
"""

import argparse
import json
import logging
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import bench_encode
import bench_index
import bench_nightly

MAX_BASE = 100_000
NUM_QUERIES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    parser.add_argument("--rows", type=int, help="only the first rows of the catalogue (default: all)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("bench_encode", "bench_index", "jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    result: dict[str, Any] = {"machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result["nightly"] = bench_nightly.run(arguments.rows, Path(folder))
        vectors = bench_nightly.read_vectors(Path(folder))[: MAX_BASE + NUM_QUERIES]
    result["encode"] = bench_encode.run(bench_encode.catalogue_texts(2000), bench_encode.MODEL)
    result["index"] = bench_index.run(vectors, num_queries=NUM_QUERIES)
    arguments.out.write_text(json.dumps(result, indent=1))
    print_table(result)
    print(f"all figures: {arguments.out}")


def print_table(result: dict[str, Any]) -> None:
    encode, index, nightly = result["encode"], result["index"], result["nightly"]
    recall = index[f"recall_at_ef_{bench_index.EQUAL_EF}"]
    peaks = {name: figures.get("peak_memory_bytes") or 0 for name, figures in nightly["stages"].items()}
    largest = max(peaks, key=lambda name: peaks[name])
    rows = [
        ("encode loop / sentence-transformers, defaults", encode["ratios"]["auto_over_defaults"], "≥ 4.0"),
        ("encode loop / sentence-transformers, bfloat16", encode["ratios"]["auto_over_bfloat16"], "≥ 1.5"),
        ("encode stage through Ray / bare loop", nightly["encode_stage_ratio"], "≥ 0.85"),
        ("build time / plain hnswlib", index["build_ratio"], "≤ 1.1"),
        (f"recall@10 at ef {bench_index.EQUAL_EF} - plain hnswlib's", recall["nightcrate"] - recall["hnswlib"], "≥ 0"),
        ("batched search / plain hnswlib at equal recall", index["search_ratio"], "≥ 0.8"),
        (f"peak memory of a worker, GiB ({largest})", peaks[largest] / 2**30, "< 2.5"),
    ]
    print()
    for name, value, target in rows:
        print(f"{name:52}{value:>9.3f}   {target}")
    print(f"\nnightly, {nightly['num_rows']:,} rows: {nightly['total_s']:.0f} s in all")
    for name, figures in nightly["stages"].items():
        print(f"  {name:10}{figures['seconds'] or 0:>8.1f} s{peaks[name] / 2**20:>10,.0f} MiB")


if __name__ == "__main__":
    main()
