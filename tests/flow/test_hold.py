"""The nights after a rollback: what was rolled back from does not come back by itself."""

import json
from pathlib import Path

import pytest
from flow.worlds import IDS, World, vector_world, write_vectors

from jobs.__main__ import main

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Release 2 was rolled back from: 3 serves what 1 did. The catalogue is still that of 2."""
    world = vector_world(tmp_path_factory.mktemp("hold") / "world")
    for num_items in (len(IDS) - 10, len(IDS)):
        write_vectors(world.folder, num_items)
        world.run()
    assert main(["rollback", world.store_url, "--to", "1"]) == 0
    return world


@pytest.fixture
def world(first_world: World, tmp_path: Path) -> World:
    world = first_world.copied(tmp_path / "world")
    return world


@pytest.mark.case(29)
@pytest.mark.parametrize("override", ["publish.always=false", "publish.always=true"])
def test_a_night_that_would_undo_a_rollback_exits_5_before_any_work_and_says_how_to_lift_the_hold(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setattr("jobs.nightly.ray_session", None)  # no work without Ray
    assert world.command("nightly", override) == 5
    error = capsys.readouterr().err
    assert "release 2 was rolled back from, and this run would publish the same" in error
    assert error.endswith(f"nightcrate resume {world.store_url}\n")
    assert [release.number for release in world.releases()] == [1, 2, 3]


@pytest.mark.case(29)
def test_plan_says_that_a_rollback_blocks_the_night(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.command("plan", "--json") == 0
    assert "release 2 was rolled back from" in json.loads(capsys.readouterr().out)["why_held"]


@pytest.mark.case(29)
def test_a_night_publishes_after_resume(world: World) -> None:
    assert main(["resume", world.store_url]) == 0
    release = world.run().release
    assert (release.number, release.kind, release.holds) == (5, "build", None)
    assert release.num_items == len(IDS)


@pytest.mark.case(29)
def test_a_night_over_another_catalogue_publishes_and_one_over_what_is_served_changes_nothing(world: World) -> None:
    write_vectors(world.folder, len(IDS) - 10)
    assert not (published := world.run().outcome.published) or not published.is_new
    write_vectors(world.folder, len(IDS) - 1)
    release = world.run().release
    assert (release.number, release.holds) == (4, None)
