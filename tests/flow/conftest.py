"""Ray that touches nothing of the user's, a tiny encoder, and a world in which one night has passed."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from flow.worlds import SYLLABLES, Night, World, make_config, make_rows, write_rows
from support.tiny_encoder import write_tiny_encoder

SPLIT = 300
"""Rows of the first of the catalogue's two files."""
DUPLICATED = ("track-007", "track-011", "show-003")
"""Ids that stand in the second file again, with other titles."""


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A folder with a short name: Ray puts unix sockets into it, whose paths are limited to 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="nc-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def ray_environment(short_folder: Path) -> Iterator[None]:
    """Ray's token, its session files and our cache in a folder of the tests', for this process and its children."""
    token = short_folder / "token"
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_TMPDIR", str(short_folder))
        patch.setenv("NIGHTCRATE_CACHE", str(short_folder / "cache"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("model"), [" ".join(SYLLABLES)])


@pytest.fixture(scope="session")
def _first_world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[World, Night]:
    folder = tmp_path_factory.mktemp("first")
    rows = make_rows()
    again = [{**row, "title": "another title"} for row in rows if row["item_id"] in DUPLICATED]
    write_rows(folder / "catalogue" / "a.parquet", rows[:SPLIT])
    write_rows(folder / "catalogue" / "b.parquet", [*rows[SPLIT:], *again, {**rows[0], "item_id": "x", "title": " "}])
    world = World(folder, make_config(folder, tiny_model))
    return world, world.run()


@pytest.fixture(scope="session")
def first_night(_first_world: tuple[World, Night]) -> Night:
    """What the first run over the catalogue has made. Only to be read."""
    return _first_world[1]


@pytest.fixture(scope="session")
def first_world(_first_world: tuple[World, Night]) -> World:
    """Where it has made it. Only to be read; `world` is for changing."""
    return _first_world[0]


@pytest.fixture
def world(first_world: World, tmp_path: Path) -> World:
    """A copy of the world after the first night."""
    return first_world.copied(tmp_path / "world")


@pytest.fixture
def fresh_world(world: World) -> World:
    """The same catalogue and configuration before any night."""
    for name in ("store", "workspace"):
        shutil.rmtree(world.folder / name)
    assert sorted(os.listdir(world.folder)) == ["catalogue", "config.yaml"]
    return world
