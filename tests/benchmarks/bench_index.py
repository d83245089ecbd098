"""Building and searching shards against what a user would pick instead: plain hnswlib, and faiss, voyager, usearch.

    python tests/benchmarks/bench_index.py --vectors FILE.npy [--base 100000] [--queries 2000] [--shards 2]

FILE.npy holds float32 unit-norm rows; the last `queries` rows are the queries. Everybody gets the same vectors, M,
ef_construction and cores, taking turns in one run. Search is compared at equal recall: each side at the smallest ef
that reaches recall@10 of 0.95, ours through all of `OpenRelease.search`. The other peers run where they are installed.
"""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np

from indexing import OpenRelease, open_release
from indexing.dense.build import build_graph
from indexing.dense.exact import exact_search
from indexing.dense.load_check import check_loads
from indexing.dense.params import IndexParams
from indexing.id_keys import id_keys, range_of
from indexing.key_ranges import shard_range
from indexing.store import open_store
from tests.support.recall import recall_at_k

log = logging.getLogger(__name__)

K = 10
RECALL_TARGET = 0.95
EQUAL_EF = 64
PARAMS = IndexParams(M=16, ef_construction=128, seed=1, builder="faiss")
PLAIN = IndexParams(M=16, ef_construction=200, seed=1)
"""Of the peer: hnswlib links with more candidates to reach the same recall."""
CORES = len(os.sched_getaffinity(0))

Search = Callable[[int], np.ndarray]
"""From ef to the labels int64 (num_queries, K) of all queries."""


def run(vectors: np.ndarray, num_queries: int = 2000, num_shards: int = 2, repeats: int = 3) -> dict[str, Any]:
    """Measures on float32 (num_rows, dim) vectors of unit norm, the last `num_queries` of which are the queries."""
    base, queries = vectors[:-num_queries], vectors[-num_queries:]
    truth = exact_search(base, queries, K)[0]
    with tempfile.TemporaryDirectory() as folder:
        item_ids = [f"item-{row}" for row in range(len(base))]
        numbers = range_of(id_keys(item_ids), [shard_range(number, num_shards) for number in range(num_shards)])
        files = [Path(folder, f"{number}.npy") for number in range(num_shards)]
        for number, file in enumerate(files):
            np.save(file, base[numbers == number])
        plain, builds = _build_in_turns(base, files, repeats)
        row_labels = np.concatenate([np.flatnonzero(numbers == number) for number in range(num_shards)])
        release = _publish(Path(folder), item_ids, numbers, files, base.shape[1])
        searches: dict[str, Search] = {
            "nightcrate": lambda ef: row_labels[_search_ours(release, queries, ef)],
            "hnswlib": lambda ef: _search_plain(plain, queries, ef),
        }
        for name, build in PEERS.items():
            if importlib.util.find_spec(name):
                log.info("building %s", name)
                started = time.perf_counter()
                searches[name] = build(base, queries)
                builds[name] = time.perf_counter() - started
        at_equal_ef = {name: recall_at_k(search(EQUAL_EF), truth) for name, search in searches.items()}
        points = _search_in_turns(searches, truth, repeats)
    return {
        "num_items": len(base),
        "dim": base.shape[1],
        "num_shards": num_shards,
        "cores": CORES,
        "build_s": builds,
        "build_ratio": builds["nightcrate"] / builds["hnswlib"],
        f"recall_at_ef_{EQUAL_EF}": at_equal_ef,
        "search": points,
        "search_ratio": points["nightcrate"]["queries_per_s"] / points["hnswlib"]["queries_per_s"],
    }


def _build_in_turns(base: np.ndarray, files: list[Path], repeats: int) -> tuple[Any, dict[str, float]]:
    """The plain index, and the median seconds of each side. Ours: a process of one thread per shard, as Ray's tasks."""
    seconds: dict[str, list[float]] = {"nightcrate": [], "hnswlib": []}
    with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(abs, range(4 * CORES)))  # the processes are there, as Ray's workers are
        for repeat in range(repeats):
            log.info("building shards and plain hnswlib, %d of %d", repeat + 1, repeats)
            seconds["nightcrate"].append(_timed(lambda: _build_ours(pool, files)))
            plain = hnswlib.Index("ip", base.shape[1])
            plain.init_index(len(base), M=PLAIN.M, ef_construction=PLAIN.ef_construction, random_seed=PLAIN.seed)
            seconds["hnswlib"].append(_timed(lambda: plain.add_items(base, num_threads=CORES)))  # noqa: B023
    return plain, {name: statistics.median(values) for name, values in seconds.items()}


def _build_ours(pool: Executor, files: list[Path]) -> None:
    list(pool.map(_build_shard, files))


def _build_shard(file: Path) -> None:
    vectors, path = np.load(file), file.with_suffix(".hnsw")
    build_graph(vectors, PARAMS, path, num_threads=1)
    check_loads(path, vectors.shape[1], len(vectors), file.stem)


def _publish(folder: Path, item_ids: list[str], numbers: np.ndarray, files: list[Path], dim: int) -> OpenRelease:
    from support.tiny_release import Collection, ReleaseMaker

    maker, url = ReleaseMaker(folder), f"file://{folder}/store"
    shards = tuple(
        maker.shard(number, [item_ids[row] for row in np.flatnonzero(numbers == number)], file.with_suffix(".hnsw"))
        for number, file in enumerate(files)
    )
    collection = Collection(name="items", item_types=("item",), num_items=len(item_ids), ef_search=1, shards=shards)
    maker.publish(open_store(url), collection, dim=dim, index=PARAMS)
    return open_release(url, cache_dir=folder / "cache")


def _search_ours(release: OpenRelease, queries: np.ndarray, ef: int) -> np.ndarray:
    """Rows of the release, which counts shard after shard."""
    release.shards = [replace(shard, ef_search=ef) for shard in release.shards]
    return release.search(queries, k=K).rows


def _search_plain(index: Any, queries: np.ndarray, ef: int) -> np.ndarray:
    index.set_ef(ef)
    labels: np.ndarray = index.knn_query(queries, k=K, num_threads=CORES)[0]
    return labels.astype(np.int64)


def _search_in_turns(searches: dict[str, Search], truth: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """Queries per second of each, at its own smallest ef for the target."""
    log.info("searching: %s", ", ".join(searches))
    efs = {name: _smallest_ef(search, truth) for name, search in searches.items()}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(3 * repeats):
        for name, search in searches.items():
            seconds[name].append(_timed(lambda: search(efs[name])))  # noqa: B023
    return {
        name: {
            "ef": efs[name],
            "recall_at_10": recall_at_k(search(efs[name]), truth),
            "queries_per_s": len(truth) / statistics.median(seconds[name]),
        }
        for name, search in searches.items()
    }


def _smallest_ef(search: Search, truth: np.ndarray) -> int:
    """By bisection over 10 … 256."""
    low, high = K, 256
    while low < high:
        middle = (low + high) // 2
        if recall_at_k(search(middle), truth) >= RECALL_TARGET:
            high = middle
        else:
            low = middle + 1
    return low


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _faiss(base: np.ndarray, queries: np.ndarray) -> Search:
    import faiss

    faiss.omp_set_num_threads(CORES)
    index = faiss.IndexHNSWFlat(base.shape[1], PLAIN.M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = PLAIN.ef_construction
    index.add(base)

    def search(ef: int) -> np.ndarray:
        index.hnsw.efSearch = ef
        labels: np.ndarray = index.search(queries, K)[1]
        return labels

    return search


def _voyager(base: np.ndarray, queries: np.ndarray) -> Search:
    import voyager

    index = voyager.Index(voyager.Space.InnerProduct, base.shape[1], M=PLAIN.M, ef_construction=PLAIN.ef_construction)
    index.add_items(base, num_threads=CORES)
    return lambda ef: index.query(queries, k=K, num_threads=CORES, query_ef=ef)[0].astype(np.int64)


def _usearch(base: np.ndarray, queries: np.ndarray) -> Search:
    from usearch.index import Index

    index: Any = Index(
        ndim=base.shape[1], metric="ip", dtype="f32", connectivity=PLAIN.M, expansion_add=PLAIN.ef_construction
    )
    index.add(np.arange(len(base)), base, threads=CORES)

    def search(ef: int) -> np.ndarray:
        index.expansion_search = ef
        labels: np.ndarray = index.search(queries, K, threads=CORES).keys
        return labels.astype(np.int64)

    return search


PEERS: dict[str, Callable[[np.ndarray, np.ndarray], Search]] = {
    "faiss": _faiss,
    "voyager": _voyager,
    "usearch": _usearch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--base", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    vectors = np.load(arguments.vectors).astype(np.float32)
    vectors = np.concatenate([vectors[: arguments.base], vectors[-arguments.queries :]])
    print(json.dumps(run(vectors, arguments.queries, arguments.shards, arguments.repeats), indent=1))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # for tests/support
    main()
