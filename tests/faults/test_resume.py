"""A run that goes on from another's artifacts, after something has changed, publishes what a fresh workspace would."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.conftest import GetNights
from faults.nights import content, run, write_vectors
from faults.ray_head import RayHead
from flow.worlds import SYLLABLES, World, make_rows
from support.tiny_encoder import write_tiny_encoder

from indexing.errors import DataError

pytestmark = [pytest.mark.case(18), pytest.mark.timeout(900)]


def other_rows(world: World) -> World:
    write_vectors(world.folder / "catalogue" / "all.parquet", make_rows(seed=5)[200:480])
    return world


def other_model(world: World) -> World:
    return world.changed(
        encoder={"model": str(write_tiny_encoder(world.folder / "model", [" ".join(SYLLABLES)], seed=8))}
    )


Change = Callable[[World], World]
CHANGES: dict[str, tuple[str, Change]] = {
    "the rows": ("vectors", other_rows),
    "links of the graph": ("vectors", lambda world: world.changed(index={"M": 12})),
    "rows of a shard": ("vectors", lambda world: world.changed(index={"rows_per_shard": 90})),
    "the seed": ("vectors", lambda world: world.changed(index={"seed": 2})),
    "the model": ("encoder", other_model),
    "the text": (
        "encoder",
        lambda world: world.changed(catalogue={"text": {"default": "{title}", "track": "{title} {creators}"}}),
    ),
    "truncation": ("encoder", lambda world: world.changed(encoder={"max_tokens": 8})),
    "the dimension": ("encoder", lambda world: world.changed(encoder={"dim": 16})),
}
QUICK = ("the rows", "links of the graph")


@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.faults) for name in CHANGES]
)
def test_a_run_reuses_nothing_that_a_change_has_made_stale(
    get_nights: GetNights, ray_head: RayHead, tmp_path: Path, what: str
) -> None:
    """An earlier run has ended after its build, on the settings of before."""
    kind, change = CHANGES[what]
    environment = ray_head.driver_environment()
    world = get_nights(kind).disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    for stage in ("encode", "build"):
        with world.start(stage, **environment) as driver:
            assert driver.wait(170) == 0
    world = change(world).changed(validation={"max_row_change": 9, "min_self_match": 0}, index={"recall_target": 0.5})
    fresh = world.changed(store=f"file://{tmp_path}/fresh/store", workspace=f"file://{tmp_path}/fresh/workspace")
    shutil.copytree(tmp_path / "stores" / "store", tmp_path / "fresh" / "store")
    for one in (world, fresh):
        run(one, environment)
    assert content(world.releases()[-1]) == content(fresh.releases()[-1])


@pytest.fixture
def resumed(get_nights: GetNights, ray_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world after both nights, to be run in this process."""
    for name, value in ray_head.driver_environment().items():
        monkeypatch.setenv(name, value)
    world = get_nights("vectors").disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    run(world, {})
    return world


def test_another_version_of_a_stage_does_its_work_anew(resumed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage's FORMAT, which changes with its code, is in the name of what it makes."""
    assert set(resumed.run().seconds) <= {"validate"}  # against the release of the night before
    done: dict[str, Any] = {}
    for stage in ("validate", "build", "prepare"):
        monkeypatch.setattr(f"jobs.{stage}.FORMAT", 99)
        done[stage] = set(resumed.run().seconds)
    assert done["validate"] == {"validate"}
    assert done["build"] == {"build", "validate"}
    assert done["prepare"] >= {"prepare", "build", "validate"}


def test_a_limit_that_is_tightened_holds_for_rows_that_were_prepared_before(
    resumed: World,
) -> None:
    path = resumed.folder / "catalogue" / "all.parquet"
    rows = pq.read_table(path)
    bad = rows.slice(0, 4).set_column(rows.column_names.index("item_id"), "item_id", pa.nulls(4, pa.string()))
    pq.write_table(pa.concat_tables([rows, bad]), path)
    resumed.changed(catalogue={"max_quarantined": 0.5}).run()
    with pytest.raises(DataError, match=r"expected at most 0\.10% bad rows"):
        resumed.changed(catalogue={"max_quarantined": 0.001}).run()
