"""What a night requests of its stores grows as the rows do, and not with the number of nights."""

from pathlib import Path
from typing import Any

import pytest
from benchmarks.bench_io import KINDS, Catalogue, exponents

import jobs.workspace.buckets

pytestmark = pytest.mark.timeout(600)
SIZES = (1_500, 6_000)


def small_catalogue(folder: Path, num_rows: int) -> Catalogue:
    return Catalogue(folder, num_rows, latency_s=0, part_rows=200, rows_per_shard=500, full_every=100)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a large catalogue has."""
    monkeypatch.setattr(jobs.workspace.buckets, "BUCKET_ROWS", 150)


def test_four_times_the_rows_are_at_most_four_times_the_requests_and_bytes(tmp_path: Path) -> None:
    full, small = [], []
    for num_rows in SIZES:
        catalogue = small_catalogue(tmp_path / str(num_rows), num_rows)
        full.append(catalogue.night())
        catalogue.change(0.03, seed=1)
        small.append(catalogue.night())
    for nights in (full, small):
        assert {"prepare", "encode", "build", "validate", "publish", "all"} <= set(nights[0])
        too_fast = {
            (stage, kind): value
            for stage, of_stage in exponents(SIZES, nights).items()
            for kind, value in of_stage.items()
            if value > 1.05
        }
        assert not too_fast, nights
    sizes, read = small[-1]["sizes"], small[-1]["all"]["read"]
    assert read < full[-1]["all"]["read"] / 3, sizes


@pytest.mark.faults
def test_later_nights_request_no_more_than_earlier_ones(tmp_path: Path) -> None:
    """Deltas become one after four nights, so these are compared in fours."""
    catalogue = small_catalogue(tmp_path, 1_000)
    catalogue.night()
    nights: list[dict[str, Any]] = []
    for number in range(8):
        catalogue.change(0.005, seed=number)
        nights.append(catalogue.night()["all"])
    for kind in KINDS:
        early, late = (sum(night[kind] for night in part) for part in (nights[:4], nights[4:]))
        assert late < 1.2 * early, (kind, nights)
