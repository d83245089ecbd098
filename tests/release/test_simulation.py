"""Nights, prunes, pins, rollbacks, resumes and readers at once, stopped and killed anywhere: thousands of orders."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.report import Trials
from support.simulated_runs import simulate
from support.simulation import Violation

from indexing.release.retention import apply_prune

EVENTS = {"commits release", "publishes", "deletes", "pins", "takes", "is stopped", "is killed", "PublishConflict"}
LONG_FORM = 1_000


def run_many(seeds: range, folder: Path, trials: Trials) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        trials.tried()
        counts += simulate(seed, folder).counts
        trials.held()
    return counts


@pytest.mark.case(14, 16, 23, 29)
def test_no_order_loses_a_live_blob_or_hides_a_release_or_shows_half_of_one(tmp_path: Path, trials: Trials) -> None:
    counts = run_many(range(150), tmp_path, trials)
    assert counts.keys() >= EVENTS
    assert all(counts[event] >= 25 for event in EVENTS)
    assert counts["places a hold"] > 10 and counts["lifts the hold"] > 1


@pytest.mark.faults
@pytest.mark.case(14, 16, 23, 29)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("thousand", range(1, 9))
def test_no_order_of_thousands_loses_hides_or_splits_a_release(tmp_path: Path, trials: Trials, thousand: int) -> None:
    run_many(range(thousand * LONG_FORM, (thousand + 1) * LONG_FORM), tmp_path, trials)


def test_a_run_can_be_repeated_from_its_seed(tmp_path: Path) -> None:
    assert simulate(7, tmp_path).trace == simulate(7, tmp_path).trace
    assert simulate(7, tmp_path).trace != simulate(8, tmp_path).trace


def give_all_runs_one_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("indexing.release.lease.uuid", SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="")))


def prune_without_looking_at_the_lease(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("support.simulated_runs.apply_prune", lambda store, plan, check: apply_prune(store, plan, bool))


def pin_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("indexing.release.retention._require_blobs", lambda store, release: None)


def roll_back_without_a_hold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("indexing.release.rollback.holds_of_rollback", lambda current, target: None)


def read_a_clock_that_stops(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("indexing.clock.elapsed_s", lambda: 0.0)


@pytest.mark.parametrize(
    ("put_back", "likely"),
    [
        (give_all_runs_one_token, 32),
        (prune_without_looking_at_the_lease, 13),
        (pin_unseen, 43),
        (roll_back_without_a_hold, 2),
        (read_a_clock_that_stops, 0),
    ],
)
def test_the_simulation_finds_faults_that_are_put_back(
    tmp_path: Path, put_back: Callable[[pytest.MonkeyPatch], None], likely: int
) -> None:
    """`likely` is the seed that finds it today, tried first."""
    with pytest.raises(Violation, match="seed"):
        for seed in (likely, *range(300)):
            simulate(seed, tmp_path, put_back)
