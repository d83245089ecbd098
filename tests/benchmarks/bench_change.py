"""What a night that follows another costs: on a real catalogue and a real S3 server, a full run, a night of few
changes, one of none, and ten more; in the end, queries/s and recall against a release that was built anew.

    python tests/benchmarks/bench_change.py [--rows 20000] [--nights 10] [--out OUT.json]

Seconds are those after Ray's start.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bench_nightly import write_config
from rich.console import Console
from support.seaweedfs import SeaweedFS

import jobs.nightly
from cluster.session import ray_session
from indexing import OpenRelease, open_release
from jobs.config.load import load_config
from jobs.config.schema import Config
from jobs.progress import Progress
from jobs.run import open_run

log = logging.getLogger(__name__)
NUM_QUERIES, K, TURNS = 2_000, 10, 5


def run(num_rows: int | None, num_nights: int, folder: Path) -> dict[str, Any]:
    """Nights over the first `num_rows` rows (all by default); everything stays in `folder`."""
    config_path = write_config(num_rows, folder)
    path = folder / "catalogue" / "items.parquet"
    with SeaweedFS() as server:
        os.environ.update(server.environment())
        server.create_bucket("bench")
        config = load_config(str(config_path))
        nights = {"full": run_night(config)}
        pq.write_table(change_rows(pq.read_table(path), 0, changed=0.01, new=0.005, gone=0.005), path)
        nights["1 % changed, 0.5 % new, 0.5 % gone"] = run_night(config)
        nights["nothing changed"] = run_night(config)
        for night in range(1, num_nights + 1):
            pq.write_table(change_rows(pq.read_table(path), night, changed=0.01), path)
            nights[f"night {night}"] = run_night(config)
        fresh = load_config(str(config_path), ["store=s3://bench/fresh"])
        nights["built anew"] = run_night(fresh)
        most = max(nights, key=lambda name: nights[name]["share_of_changes"])
        speed = compare_search(
            config.store, fresh.store, {name: nights[name]["release"] for name in (most, f"night {num_nights}")}
        )
    full, few, none = (nights[name] for name in list(nights)[:3])
    return {
        "nights": nights,
        "search": speed,
        "ratios": {
            "few_changes_time": few["seconds"] / full["seconds"],
            "few_changes_bytes": few["uploaded_bytes"] / full["uploaded_bytes"],
            "nothing_changed_time": none["seconds"] / full["seconds"],
        },
    }


def run_night(config: Config) -> dict[str, Any]:
    connected: list[float] = []

    @contextmanager
    def session(address: str | None) -> Iterator[None]:
        with ray_session(address):
            connected.append(time.monotonic())
            yield
            connected.append(time.monotonic())

    progress = Progress(Console(stderr=True))
    with patch.object(jobs.nightly, "ray_session", session):
        outcome = jobs.nightly.run_night(open_run(config, progress), "publish")
    assert outcome.published is not None
    release, uploads = outcome.published.release, outcome.published.uploads
    shards = [shard for collection in release.collections for shard in collection.shards]
    figures = {
        "release": release.number,
        "is_new": outcome.published.is_new,
        "seconds": connected[1] - connected[0],
        "stages": progress.seconds,
        "num_encoded": outcome.encoded.num_encoded if "encode" in progress.seconds else 0,
        "uploaded_bytes": uploads.uploaded_bytes,
        "share_of_changes": sum(2 * shard.num_rows - shard.num_base_rows - shard.num_items for shard in shards)
        / sum(shard.num_base_rows for shard in shards),
        "num_deltas": [len(shard.deltas or ()) for shard in shards],
        "recall_at_10": {name: figures["items"]["recall_at_10"] for name, figures in release.validation.items()},
        "ef_search": {collection.name: collection.ef_search for collection in release.collections},
    }
    log.info("%s", json.dumps(figures))
    return figures


def change_rows(table: pa.Table, seed: int, *, changed: float, new: float = 0, gone: float = 0) -> pa.Table:
    """The catalogue with these shares of its rows changed in their title, added, and removed."""
    generator, count = np.random.default_rng(seed), table.num_rows
    rows = generator.permutation(count)
    edited, doubled, dropped = np.split(rows, np.cumsum([round(count * changed), round(count * new)]))
    titles = np.array(table["title"].to_pylist(), dtype=object)
    titles[edited] = [f"{titles[row]} (remaster {seed}.{row})" for row in edited]  # no two of one text
    keep = np.ones(count, bool)
    keep[dropped[: round(count * gone)]] = False
    position = table.column_names.index("title")
    edited_table = table.set_column(position, "title", pa.array(titles, pa.string())).filter(keep)
    added = table.take(doubled)
    again = [f"{titles[row]} (again {seed}.{row})" for row in doubled]
    added = added.set_column(position, "title", pa.array(again, pa.string()))
    ids = [f"{item_id}-again-{seed}" for item_id in added["item_id"].to_pylist()]
    added = added.set_column(table.column_names.index("item_id"), "item_id", pa.array(ids, pa.string()))
    return pa.concat_tables([edited_table, added.cast(table.schema)])


def compare_search(url: str, fresh_url: str, numbers: dict[str, int]) -> dict[str, Any]:
    """Queries/s of releases with deltas and of one built from scratch, in turns; the queries are items' own vectors."""
    releases = {name: open_release(url, number=number) for name, number in numbers.items()}
    releases["built anew"] = open_release(fresh_url)
    queries = sample_vectors(releases["built anew"])
    seconds: dict[str, list[float]] = {name: [] for name in releases}
    for turn in range(TURNS + 1):
        for name, release in releases.items():
            started = time.perf_counter()
            release.search(queries, k=K)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    rates = {name: NUM_QUERIES / float(np.median(values)) for name, values in seconds.items()}
    return {name: {"queries_per_s": rate, "of_fresh": rate / rates["built anew"]} for name, rate in rates.items()}


def sample_vectors(release: OpenRelease) -> np.ndarray:
    """float32 (NUM_QUERIES, dim)."""
    parts = []
    for shard in release.shards:
        share = NUM_QUERIES * shard.num_items // release.release.num_items + 1
        parts.append(shard.graph.vectors(shard.graph.labels[:: max(1, shard.num_items // share)][:share]))
    return np.concatenate(parts)[:NUM_QUERIES]


def print_table(result: dict[str, Any]) -> None:
    print(f"{'':36}{'seconds':>9}{'encoded':>9}{'MB sent':>9}{'changes':>9}  recall@10")
    for name, night in result["nights"].items():
        recall = min(night["recall_at_10"].values())
        sent = night["uploaded_bytes"] / 1e6
        print(
            f"{name:36}{night['seconds']:>9.1f}{night['num_encoded']:>9,}{sent:>9.1f}"
            f"{night['share_of_changes']:>9.1%}  {recall:.4f}"
        )
    for name, figures in result["search"].items():
        print(f"search, {name:28}{figures['queries_per_s']:>9.0f} queries/s, {figures['of_fresh']:.2f} of built anew")
    for name, value in result["ratios"].items():
        print(f"{name:36}{value:>9.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="only the first rows of the catalogue")
    parser.add_argument("--nights", type=int, default=10)
    parser.add_argument("--out", type=Path, metavar="JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in (__name__, "jobs"):
        logging.getLogger(name).setLevel(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        result = run(arguments.rows, arguments.nights, Path(name))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print_table(result)


if __name__ == "__main__":
    main()
