"""Search logs: rows/s of reading one and of making pairs, and what mining hard negatives costs a query and a shard.

    python tests/benchmarks/bench_logs.py [--rows 2000000] [--shard-rows 250000] [--folder FOLDER] [--out OUT.json]

All on one thread, in CPU seconds, so that other work on the machine disturbs little. The graph takes minutes to build
and is kept in FOLDER. At the end, the time for 100,000 queries over 400 shards, computed from what was measured.
"""

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from bench_scale import write_vectors

from indexing.dense.build import build_graph
from indexing.dense.hnsw import Graph, load_graph
from indexing.dense.params import IndexParams
from jobs.config.training import NegativesConfig
from jobs.evaluation.judgements import read_judgements
from jobs.inputs.interactions import read_interactions
from jobs.quality.best_hits import QUERIES_PER_BLOCK, BestHits, shard_hits
from jobs.training.encoder.data import log_pairs
from jobs.training.encoder.negatives import choose, known_hits

Result = TypeVar("Result")
log = logging.getLogger(__name__)
DIM, EF, NUM_SEARCHES = 384, 48, 2048
K = NegativesConfig().last_rank
MERGED_QUERIES, MERGED_SHARDS = 1024, 400
QUERIES, SHARDS, CORES = 100_000, 400, (1, 16)


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    """(the result, CPU seconds)."""
    started = time.process_time()
    return function(), time.process_time() - started


def write_log(num_rows: int, path: Path) -> None:
    """Popular queries and items, a fifth of the searches without an item, sessions of eight rows."""
    rng = np.random.default_rng(0)
    queries, items = (rng.random(num_rows) ** power * num_rows for power in (3, 2))
    queries, items = (queries / 10).astype(np.int64), (items / 4).astype(np.int64)
    sessions = rng.integers(max(1, num_rows // 8), size=num_rows)
    led = rng.random(num_rows) > 0.2
    table = pa.table(
        {
            "query": names("songs about rain ", queries),
            "item_id": pc.if_else(pa.array(led), names("item-", items), pa.scalar(None, pa.string())),
            "weight": pa.array(np.where(led, rng.integers(1, 4, num_rows), 0).astype(np.float32)),
            "query_group": names("group ", queries // 2),
            "query_kind": names("kind ", queries % 2),
            "session_id": names("session-", sessions),
            "timestamp": 1.7e9 + rng.integers(600, size=num_rows),
        }
    )
    pq.write_table(table, path)


def names(prefix: str, numbers: np.ndarray) -> pa.Array:
    return pa.array([f"{prefix}{number}" for number in range(numbers.max() + 1)]).take(pa.array(numbers))


def measure_log(num_rows: int) -> dict[str, float]:
    """Rows a CPU second of each step."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder, "log.parquet")
        write_log(num_rows, path)
        read, read_s = timed(lambda: read_interactions(str(path), None, "log", lambda num_rows: 0).rows)
    pairs, pairs_s = timed(lambda: log_pairs(read))
    ids = pc.unique(read["item_id"]).drop_null()
    columns = dict.fromkeys(("item_id", "title", "description"), ids)
    items = pa.table({**columns, "in_pool": np.arange(len(ids)) < 0})
    inputs: Any = SimpleNamespace(source=None, rules=None)
    with patch("jobs.evaluation.judgements.scan_items", lambda *_: items):  # the catalogue is not measured here
        _, judged_s = timed(lambda: read_judgements(None, inputs, read))  # type: ignore[arg-type]
    log.info("%d rows make %d pairs", num_rows, pairs.num_rows)
    seconds = {"read": read_s, "pairs": pairs_s, "judgements": judged_s}
    return {name: num_rows / value for name, value in seconds.items()}


def open_shard(num_rows: int, folder: Path) -> tuple[Graph, float, np.ndarray]:
    """(a graph of clustered vectors, CPU seconds to load it, queries)."""
    folder = folder / f"shard-{num_rows}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "graph.hnsw").exists():
        write_vectors(num_rows + NUM_SEARCHES, DIM, folder)
        vectors = np.load(folder / "vectors.npy", mmap_mode="r")[:num_rows]
        build_graph(np.ascontiguousarray(vectors), IndexParams(), folder / "graph.hnsw", os.cpu_count() or 1)
    graph, load_s = timed(lambda: load_graph(folder / "graph.hnsw", DIM, num_rows))
    return graph, load_s, np.load(folder / "vectors.npy", mmap_mode="r")[num_rows:]


def measure_search(num_rows: int, folder: Path) -> dict[str, float]:
    """CPU seconds of a task: to load the shard, and a query to search it and to pack what it finds."""
    graph, load_s, queries = open_shard(num_rows, folder)
    item_ids = pa.chunked_array([[f"item-{row:09}" for row in range(num_rows)]])
    floor = np.full(len(queries), -np.inf, np.float32)

    def search() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(queries), QUERIES_PER_BLOCK):
            yield graph.search(queries[start : start + QUERIES_PER_BLOCK], K, EF, num_threads=1)

    _, search_s = timed(lambda: shard_hits(search(), floor, item_ids))
    return {"load_s": load_s, "search_s": search_s / len(queries)}


def measure_merge(shard_rows: int) -> dict[str, float]:
    """CPU seconds of the driver: a query and shard to merge random hits, and a query for the rule."""
    rng = np.random.default_rng(0)
    best, merge_s = BestHits(MERGED_QUERIES, K), 0.0
    for shard in range(MERGED_SHARDS):
        ids = pa.chunked_array([[f"item-{shard}-{row}" for row in range(min(shard_rows, 4 * K))]])
        labels = np.argsort(rng.random((MERGED_QUERIES, len(ids)), np.float32), axis=1)[:, :K]
        scores = -np.sort(-rng.random((MERGED_QUERIES, K), np.float32), axis=1)
        hits = shard_hits([(labels, scores)], best.floor, ids)
        merge_s += timed(lambda hits=hits: best.add(hits))[1]  # type: ignore[misc]
    merge_s += timed(best.merge)[1]
    queries = pa.array([f"query {number:04}" for number in range(MERGED_QUERIES)])
    found = best.ids.take(pa.array(best.items[:, 0])).cast(pa.string())
    pairs = pa.table({"query": queries, "query_group": queries, "item_id": found})
    _, rule_s = timed(lambda: choose(queries, best, known_hits(queries, best, pairs), NegativesConfig()))
    return {"merge_s": merge_s / MERGED_QUERIES / MERGED_SHARDS, "rule_s": rule_s / MERGED_QUERIES}


def compute(found: dict[str, float]) -> dict[str, float]:
    """Seconds for QUERIES over SHARDS, without encoding: tasks share the cores, the driver merges on a single one.

    That tasks and driver overlap is left out.
    """
    tasks_s = SHARDS * (found["load_s"] + QUERIES * found["search_s"])
    driver_s = QUERIES * (SHARDS * found["merge_s"] + found["rule_s"])
    log.info("%d queries × %d shards: tasks %.0f s, driver %.0f s", QUERIES, SHARDS, tasks_s, driver_s)
    return {f"cores: {cores}": tasks_s / cores + driver_s for cores in CORES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the log")
    parser.add_argument("--shard-rows", type=int, default=250_000)
    parser.add_argument("--folder", type=Path, default=Path("build/logs"), help="where the graph is kept")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    mining = measure_search(arguments.shard_rows, arguments.folder) | measure_merge(arguments.shard_rows)
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()},
        "rows_per_cpu_second": measure_log(arguments.rows),
        "mining": mining,
        "computed_s": compute(mining),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
