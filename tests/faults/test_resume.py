"""A run that resumes from another's artifacts, after something has changed, publishes what a fresh workspace would."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.conftest import GetNights
from faults.nights import content, run, write_vectors
from flow.worlds import SYLLABLES, World, make_rows
from rich.console import Console
from support.tiny_encoder import write_tiny_encoder

from jobs.config.load import load_config
from jobs.inputs.inputs import read_inputs
from jobs.progress import Progress
from jobs.run import open_run
from jobs.stages.build import built_artifact
from jobs.stages.prepare import prepared_artifact
from jobs.stages.validate import validated_artifact
from jobs.workspace.records import Built

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
def test_a_run_reuses_nothing_that_a_change_has_made_stale(get_nights: GetNights, tmp_path: Path, what: str) -> None:
    """An earlier run has ended after its build, on the settings of before."""
    kind, change = CHANGES[what]
    world = get_nights(kind).disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    for stage in ("encode", "build"):
        assert world.command(stage) == 0
    world = change(world).changed(validation={"max_row_change": 9, "min_self_match": 0}, index={"recall_target": 0.5})
    fresh = world.changed(store=f"file://{tmp_path}/fresh/store", workspace=f"file://{tmp_path}/fresh/workspace")
    shutil.copytree(tmp_path / "stores" / "store", tmp_path / "fresh" / "store")
    for one in (world, fresh):
        run(one)
    assert content(world.releases()[-1]) == content(fresh.releases()[-1])


FORMAT_OF = {
    "prepare": "jobs.stages.prepare",
    "encode": "jobs.inputs.encoder",
    "build": "jobs.stages.build",
    "validate": "jobs.stages.validate",
}


@pytest.mark.parametrize("stage", FORMAT_OF)
def test_another_version_of_a_stage_has_other_artifacts(
    written_world: World, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FORMAT changes with what a stage writes; each stage's name goes into those of the stages after it."""
    config = load_config(str(written_world.write_config()))

    def names() -> dict[str, str]:
        run = open_run(config, Progress(Console(quiet=True)))
        inputs = read_inputs(run)
        prepared = prepared_artifact(run.workspace, inputs)
        built = built_artifact(run, prepared.path, None)
        validated = validated_artifact(run, inputs, Built(path=built.path, shards=(), peak_memory_bytes=0))
        encoder = str(inputs.encoder_fingerprint)
        return {"encode": encoder, "prepare": prepared.path, "build": built.path, "validate": validated.path}

    before = names()
    monkeypatch.setattr(f"{FORMAT_OF[stage]}.FORMAT", 99)
    order = ["encode", "prepare", "build", "validate"]
    changed = [name for name, path in names().items() if path != before[name]]
    assert sorted(changed) == sorted(order[order.index(stage) :])


def test_a_limit_that_is_tightened_applies_to_rows_that_were_prepared_before(
    get_nights: GetNights, tmp_path: Path
) -> None:
    world = get_nights("vectors").disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    path = world.folder / "catalogue" / "all.parquet"
    rows = pq.read_table(path)
    bad = rows.slice(0, 4).set_column(rows.column_names.index("item_id"), "item_id", pa.nulls(4, pa.string()))
    pq.write_table(pa.concat_tables([rows, bad]), path)
    run(world.changed(catalogue={"max_quarantined": 0.5}))
    errors = run(world.changed(catalogue={"max_quarantined": 0.001}), expected=3)
    assert "expected at most 0 bad rows" in errors


def test_queries_that_change_under_one_name_are_measured_again(written_world: World, tmp_path: Path) -> None:
    config = load_config(str(written_world.changed(validation={"queries": f"{tmp_path}/q.parquet"}).write_config()))
    run = open_run(config, Progress(Console(quiet=True)))
    built = Built(path="builds/x", shards=(), peak_memory_bytes=0)
    texts, names = [], set()
    for words in ("rose wave", "storm glow"):
        pq.write_table(pa.table({"query": [words]}), tmp_path / "q.parquet")
        inputs = read_inputs(run)
        texts.append(inputs.queries)
        names.add(validated_artifact(run, inputs, built).path)
    assert texts == [["rose wave"], ["storm glow"]]
    assert len(names) == 2
