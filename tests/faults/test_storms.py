"""A night while the store answers 503, SlowDown or 409, late or never: done or exit 6, nothing half-published."""

import random
from pathlib import Path

import pytest
from faults.conftest import GetNights
from faults.kills import Reader, check_whole
from faults.nights import Nights, content, run
from flow.worlds import World
from support.fault_proxy import (
    CONFLICT,
    CUT,
    DROP_RESPONSE,
    INTERNAL_ERROR,
    NONE,
    RESET,
    SLOW_DOWN,
    UNAVAILABLE,
    Fault,
    FaultProxy,
    Request,
    storm,
)

from indexing.store import open_store

pytestmark = [pytest.mark.case(7), pytest.mark.timeout(600)]
FAULTS = (UNAVAILABLE, SLOW_DOWN, CONFLICT, INTERNAL_ERROR, RESET, DROP_RESPONSE, CUT)
LATE = Fault(answer_delay_s=32.0)
"""Past the client's read time-out of 30 s."""


@pytest.fixture
def nights(get_nights: GetNights) -> Nights:
    return get_nights("vectors")


def end_in_a_storm(world: World, nights: Nights, proxy: FaultProxy, seed: int, share: float, late: int = 0) -> None:
    """Runs in a storm, at most `late` of whose answers come after the time-out."""
    blow, left, dice = storm(seed, share, FAULTS), [LATE] * late, random.Random(seed)

    def plan(request: Request) -> Fault:
        if left and request.method == "PUT" and dice.random() < 0.05:
            return left.pop()
        return blow(request)

    proxy.plan = plan
    with Reader(world.store_url) as reader:
        assert world.command("nightly") in (0, 6)
    assert len([fault for _, fault in proxy.log if fault is not NONE]) > 5
    assert not reader.problems
    check_whole(open_store(world.store_url))


def converge_in_calm(world: World, nights: Nights, proxy: FaultProxy) -> None:
    proxy.plan = lambda request: NONE
    run(world)
    first, second = world.releases()
    assert content(first) == content(nights.first)
    assert content(second) == content(nights.second)


def test_a_night_in_a_storm_ends_well_or_with_exit_6_and_a_rerun_converges(
    nights: Nights, tmp_path: Path, s3_store_url: str, proxy: FaultProxy
) -> None:
    world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
    end_in_a_storm(world, nights, proxy, seed=1, share=0.15)
    converge_in_calm(world, nights, proxy)


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("seed", "share"), [(seed, share) for seed in (1, 2, 3) for share in (0.1, 0.2, 0.3)])
def test_nights_in_many_storms_end_well_or_with_exit_6_and_reruns_converge(
    get_nights: GetNights,
    tmp_path: Path,
    s3_store_url: str,
    proxy: FaultProxy,
    seed: int,
    share: float,
) -> None:
    nights = get_nights("encoder" if seed == 1 else "vectors")
    world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
    end_in_a_storm(world, nights, proxy, seed, share, late=1)
    converge_in_calm(world, nights, proxy)


def test_a_store_that_is_down_for_good_ends_a_night_with_exit_6(
    nights: Nights, tmp_path: Path, s3_store_url: str, proxy: FaultProxy
) -> None:
    world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
    proxy.plan = lambda request: UNAVAILABLE if "/blobs/" in request.path else NONE
    errors = run(world, expected=6)
    assert "and stayed so over all retries: try again later" in errors.splitlines()[-1]
    converge_in_calm(world, nights, proxy)
