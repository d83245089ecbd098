"""Folders on several nodes: refused unless every node sees them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flow.worlds import World, vector_world
from rich.console import Console
from support.sources import scan

from indexing.errors import ConfigError
from jobs.config.load import load_config
from jobs.inputs.shared import require_shared
from jobs.progress import Progress
from jobs.run import open_run

Nodes = Callable[[Callable[[], Any]], list[tuple[str, Any]]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return vector_world(tmp_path / "world")


@pytest.fixture
def check(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """check(each) asks two nodes, which answer what `each` returns."""

    def check_(each: Nodes) -> None:
        config = load_config(str(world.write_config()))
        monkeypatch.setattr("jobs.inputs.shared.cpu_nodes", lambda: [{}, {}])
        monkeypatch.setattr("jobs.inputs.shared.on_each_node", each)
        require_shared(open_run(config, Progress(Console(quiet=True))), scan(config))

    return check_


def test_nodes_that_see_the_same_folders_pass_and_nothing_is_left(world: World, check: Callable[..., None]) -> None:
    check(lambda act: [("10.0.0.1", act()), ("10.0.0.2", act())])
    assert [path for path in world.folder.rglob("*") if path.is_file() and "preflight" in str(path)] == []


@pytest.mark.parametrize(
    ("setting", "folder"), [("store", "store"), ("workspace", "workspace"), ("vectors.path", "vectors.parquet")]
)
def test_a_node_that_does_not_see_a_folder_is_named(
    world: World, check: Callable[..., None], setting: str, folder: str
) -> None:
    def on_two_nodes(act: Callable[[], Any]) -> list[tuple[str, Any]]:
        here = act()
        hidden, path = world.folder / "hidden", world.folder / folder
        path.rename(hidden)
        path.touch() if folder.endswith("parquet") else path.mkdir()
        there = act()
        path.unlink() if path.is_file() else path.rmdir()
        hidden.rename(path)
        return [("10.0.0.1", here), ("10.0.0.2", there)]

    with pytest.raises(ConfigError, match=rf"^{setting}: node 10\.0\.0\.2 does not see file://{world.folder}.*s3://"):
        check(on_two_nodes)


def test_a_folder_that_ray_deletes_with_the_job_is_refused(tmp_path: Path) -> None:
    world = vector_world(tmp_path / "runtime_resources" / "working_dir_files" / "pkg")
    config = load_config(str(world.write_config()))
    kept = replace(config, store=f"file://{tmp_path}/kept")
    for refused, setting in ((config, "store"), (kept, "workspace")):
        with pytest.raises(ConfigError, match=rf"{setting}: file://.*is in Ray's copy of --working-dir"):
            open_run(refused, Progress(Console(quiet=True)))
    open_run(replace(kept, workspace="s3://bucket/workspace"), Progress(Console(quiet=True)))
