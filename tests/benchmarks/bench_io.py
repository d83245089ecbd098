"""What a night requests of its stores, by stage: how it grows with the rows, and with the nights.

    python tests/benchmarks/bench_io.py [--rows 10000 100000 1000000 3000000] [--nights 60] [--out OUT.json]

The real stages over a synthetic catalogue, with a tiny encoder, on stores that count requests and answer after 10 ms.
Prints requests and bytes by stage, the exponents of a power law fitted to them, and what 100 million rows would need.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import support.counting_store
from ray import cloudpickle
from support.counting_store import CountingProgress, CountingStore, Counts, RequestLog
from support.tiny_encoder import write_tiny_encoder

import jobs.inputs.files
from indexing.store import Store, open_store
from jobs.config.load import load_config
from jobs.nightly import run_night
from jobs.run import Run

cloudpickle.register_pickle_by_value(support.counting_store)  # Ray's workers may not find the module

log = logging.getLogger(__name__)
LATENCY_S = 0.01
PART_ROWS = 100_000
WORDS = [f"word{number}" for number in range(20)]
KINDS = ("requests", "read", "written")
NIGHT_ROWS = 20_000
LARGE = 100_000_000


def write_catalogue(folder: Path, num_rows: int, versions: np.ndarray, part_rows: int) -> None:
    """Row i is item i; its title has the number of its version."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, num_rows, part_rows):
        rows = np.arange(start, min(start + part_rows, num_rows))
        words = np.array(WORDS)[np.random.default_rng(start).integers(0, len(WORDS), (len(rows), 4))]
        titles = [f"{' '.join(line)} {row} {versions[row]}" for row, line in zip(rows.tolist(), words, strict=True)]
        table = pa.table(
            {"item_id": [f"item-{row}" for row in rows], "item_type": ["item"] * len(rows), "title": titles}
        )
        pq.write_table(table, folder / f"part-{start:010}.parquet")


class Catalogue:
    """A synthetic catalogue with its stores, in a folder."""

    def __init__(
        self,
        folder: Path,
        num_rows: int,
        latency_s: float,
        part_rows: int = PART_ROWS,
        rows_per_shard: int = 250_000,
        full_every: int = 7,
    ) -> None:
        self.folder, self.num_rows, self.latency_s, self.part_rows = folder, num_rows, latency_s, part_rows
        self.versions = np.zeros(num_rows, np.int64)
        write_catalogue(folder / "catalogue", num_rows, self.versions, part_rows)
        self.config = folder / "config.yaml"
        settings = {
            "name": "synthetic",
            "store": str(folder / "store"),
            "workspace": str(folder / "workspace"),
            "catalogue": {
                "path": str(folder / "catalogue"),
                "collections": {"items": {"item_types": ["item"]}},
                "text": {"default": "{title}"},
            },
            "encoder": {"model": str(write_tiny_encoder(folder / "model", WORDS)), "dtype": "float32"},
            "index": {"M": 8, "ef_construction": 40, "recall_target": 0.5, "rows_per_shard": rows_per_shard},
            # Words repeat, so vectors lie close together; what is found does not matter here.
            "validation": {"min_self_match": 0, "min_shard_recall": 0, "full_every": full_every},
        }
        self.config.write_text(json.dumps(settings))

    def change(self, share: float, seed: int) -> None:
        rows = np.random.default_rng(seed).choice(self.num_rows, int(share * self.num_rows), replace=False)
        self.versions[rows] += 1
        write_catalogue(self.folder / "catalogue", self.num_rows, self.versions, self.part_rows)

    def night(self) -> dict[str, Counts]:
        """Requests and bytes by stage, of `rest` and `all`; of the release as `release`, of the catalogue too."""
        requests = RequestLog(Path(tempfile.mkdtemp(dir=self.folder, prefix="requests-")))
        progress = CountingProgress(requests)
        config = load_config(str(self.config))

        def counting(url: str, *settings: Any) -> Store:
            return CountingStore(open_store(url, *settings), requests, self.latency_s)

        run = Run(config, counting(config.store), counting(config.workspace), progress)
        with mock.patch.object(jobs.inputs.files, "open_store", counting):
            outcome = run_night(run, "publish")
        assert outcome.published
        total, by_stage = requests.total(), progress.by_stage
        rest = {kind: total[kind] - sum(counts[kind] for counts in by_stage.values()) for kind in KINDS}
        release = outcome.published.release
        shards = [shard for collection in release.collections for shard in collection.shards]
        items = [blob for shard in shards for name, blob in shard.blobs() if name.endswith("items")]
        sizes = {
            "catalogue": sum(path.stat().st_size for path in (self.folder / "catalogue").iterdir()),
            "row table": sum(blob.size_bytes for blob in items),
            "release": release.size_bytes,
        }
        return {**by_stage, "rest": rest, "all": total, "sizes": sizes}


def exponents(x: Sequence[int], nights: Sequence[dict[str, Counts]]) -> dict[str, dict[str, float]]:
    """Stage → kind → the exponent of a power law through what it counts at each of `x`."""
    found: dict[str, dict[str, float]] = {}
    for stage in [name for name in nights[0] if name != "sizes"]:
        for kind in KINDS:
            values = [night[stage][kind] for night in nights]
            if all(values):
                slope = float(np.polyfit(np.log(x), np.log(values), 1)[0])
                found.setdefault(stage, {})[kind] = round(slope, 3)
    return found


def measure_rows(
    sizes: Sequence[int], make: Callable[[Path, int], Catalogue]
) -> tuple[list[dict[str, Counts]], list[dict[str, Counts]]]:
    """Of each number of rows: the first night, and one of 1 % changes."""
    full, small = [], []
    for num_rows in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            catalogue = make(Path(folder), num_rows)
            full.append(catalogue.night())
            catalogue.change(0.01, seed=1)
            small.append(catalogue.night())
            log.info("%d rows: full night %s, 1 %% changes %s", num_rows, full[-1]["all"], small[-1]["all"])
    return full, small


def measure_nights(num_nights: int, catalogue: Catalogue) -> list[dict[str, Counts]]:
    """The nights after the first, of 1 % changes each."""
    catalogue.night()
    nights = []
    for number in range(1, num_nights + 1):
        catalogue.change(0.01, seed=number)
        nights.append(catalogue.night())
    return nights


def print_nights(title: str, x: Sequence[int], nights: Sequence[dict[str, Counts]]) -> None:
    print(f"\n{title}\n{'':>12}{'stage':>12}{'requests':>12}{'read MB':>12}{'written MB':>12}")
    for value, night in zip(x, nights, strict=True):
        for stage, counts in night.items():
            if stage != "sizes":
                figures = f"{counts['requests']:>12,}{counts['read'] / 1e6:>12,.1f}{counts['written'] / 1e6:>12,.1f}"
                print(f"{value:>12,}{stage:>12}{figures}")
        print(f"{'':>12}" + ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in night["sizes"].items()))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 3_000_000])
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    full, small = measure_rows(args.rows, lambda folder, num_rows: Catalogue(folder, num_rows, LATENCY_S))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        nights = measure_nights(args.nights, Catalogue(Path(folder), NIGHT_ROWS, LATENCY_S, rows_per_shard=5_000))
    found = {
        "rows": args.rows,
        "full": full,
        "small": small,
        "nights": nights,
        "exponents in rows, full": exponents(args.rows, full),
        "exponents in rows, 1 % changes": exponents(args.rows, small),
        "exponents in nights": exponents(range(1, args.nights + 1), nights),
    }
    print_nights("full nights", args.rows, full)
    print_nights("nights of 1 % changes", args.rows, small)
    for name in [name for name in found if name.startswith("exponents")]:
        print(f"\n{name}")
        for stage, of_stage in found[name].items():
            print(f"{stage:>12}  " + "  ".join(f"{kind} {value:+.3f}" for kind, value in of_stage.items()))
    print(f"\nfor {LARGE:,} rows, from the {args.rows[-1]:,} that were measured")
    for name, measured in (("full", full[-1]), ("1 % changes", small[-1])):
        scale = LARGE / args.rows[-1]
        counts = measured["all"]
        print(
            f"{name:>12}: {counts['requests'] * scale:,.0f} requests, {counts['read'] * scale / 1e9:,.1f} GB read, "
            f"{counts['written'] * scale / 1e9:,.1f} GB written"
        )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
