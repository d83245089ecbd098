"""Workers that die again and again, as the out-of-memory killer makes them: exit 6 in bounded time, never a hang."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.conftest import GetNights
from faults.kills import check_whole, kill_all
from faults.nights import Nights, content, expire_lease, run
from flow.shared_ray import SharedRay
from flow.worlds import World
from support.fault_proxy import Fault, FaultProxy
from support.report import Trials

from indexing.store import open_store

pytestmark = [pytest.mark.case(24), pytest.mark.timeout(600)]
LIMIT_S = 240.0


@contextmanager
def killing(ray: SharedRay, name: str) -> Iterator[list[int]]:
    """SIGKILL, as the out-of-memory killer sends it, to each process that starts to work on a task of that name."""
    killed: list[int] = []
    stop = threading.Event()

    def kill_for_ever() -> None:
        while not stop.wait(0.01):
            found = [pid for pid in ray.busy_workers(name) if pid not in killed]
            kill_all(found)
            killed.extend(found)

    thread = threading.Thread(target=kill_for_ever)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def check_that_the_run_ends(world: World, nights: Nights, ray: SharedRay, name: str, trials: Trials) -> None:
    """With every worker killed that starts on `name`: exit 6, nothing published; once they live, a rerun resumes."""
    with killing(ray, name) as killed, world.start("nightly", **ray.driver_environment()) as driver:
        try:
            _, errors = driver.communicate(timeout=LIMIT_S)
        finally:
            driver.kill()
    trials.tried(max(1, len(killed)))
    assert killed
    assert driver.returncode == 6, errors
    assert "nightcrate: " in errors.splitlines()[-1]
    assert [release.number for release in world.releases()] == [1]
    check_whole(open_store(world.store_url))
    expire_lease(open_store(world.store_url))
    run(world)
    assert content(world.releases()[-1]) == content(nights.second)
    trials.held(len(killed))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vectors", "build_shard"),
        pytest.param("vectors", "MapBatches(read_item)", marks=pytest.mark.faults),
        pytest.param("vectors", "inspect_shard", marks=pytest.mark.faults),
        pytest.param("vectors", "search_shard", marks=pytest.mark.faults),
        pytest.param("encoder", "MapBatches(before_actor)", marks=pytest.mark.faults),
        pytest.param("encoder", "BucketEncoder", marks=pytest.mark.faults),
    ],
)
def test_a_stage_whose_workers_always_die_ends_with_exit_6(
    get_nights: GetNights, shared_ray: SharedRay, tmp_path: Path, kind: str, name: str, trials: Trials
) -> None:
    nights = get_nights(kind)
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    check_that_the_run_ends(world, nights, shared_ray, name, trials)


@pytest.mark.faults
def test_a_publish_whose_workers_always_die_ends_with_exit_6(
    get_nights: GetNights, shared_ray: SharedRay, tmp_path: Path, s3_store_url: str, proxy: FaultProxy, trials: Trials
) -> None:
    """Each upload takes a second: one of some milliseconds could escape its killer."""
    nights = get_nights("vectors")
    world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
    proxy.plan = lambda request: Fault(delay_s=1.0 if request.method == "PUT" and "/blobs/" in request.path else 0.0)
    check_that_the_run_ends(world, nights, shared_ray, "upload_shard", trials)
