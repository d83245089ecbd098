"""Ray that touches nothing of the user's, a tiny encoder, and a world in which one night has passed."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.shared_ray import SharedRay, share_ray
from flow.worlds import RAY_TOKEN, SYLLABLES, Night, World, make_config, make_rows, write_rows
from support.seaweedfs import SeaweedFS
from support.tiny_encoder import write_tiny_encoder

SPLIT = 300
"""Rows of the first of the catalogue's two files."""
DUPLICATED = ("track-007", "track-011", "show-003")
"""Ids that occur again in the second file, with other titles."""


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
    token.write_text(RAY_TOKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("RAY_TMPDIR", str(short_folder))
        patch.setenv("NIGHTCRATE_CACHE", str(short_folder / "cache"))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_ray(ray_environment: None, request: pytest.FixtureRequest) -> Iterator[SharedRay]:
    """Which runs in this process use; its workers know the S3 server, where there is one."""
    has_s3 = SeaweedFS.binary() is not None
    environment = request.getfixturevalue("s3_server").environment() if has_s3 else {}
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            shared = stack.enter_context(share_ray())
        yield shared


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("model"), [" ".join(SYLLABLES)])


@pytest.fixture(scope="session")
def written_world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    """Two files; the second ends with ids that already occurred and a row without a title; 40 queries."""
    folder = tmp_path_factory.mktemp("written")
    rows = make_rows()
    again = [{**row, "title": "another title"} for row in rows if row["item_id"] in DUPLICATED]
    write_rows(folder / "catalogue" / "a.parquet", rows[:SPLIT])
    write_rows(folder / "catalogue" / "b.parquet", [*rows[SPLIT:], *again, {**rows[0], "item_id": "x", "title": " "}])
    queries = [" ".join(row["title"].split()[:2]) for row in rows[100:140]]
    pq.write_table(pa.table({"query": queries}), folder / "queries.parquet")
    world = World(folder, make_config(folder, tiny_model))
    return world.changed(validation={"queries": f"{folder}/queries.parquet"})


@pytest.fixture
def fresh_world(written_world: World, tmp_path: Path) -> World:
    """A catalogue and a configuration before any night."""
    return written_world.copied(tmp_path / "world")


@pytest.fixture(scope="session")
def first_world(written_world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Where the first night was. Only to be read; `world` is for changing."""
    return written_world.copied(tmp_path_factory.mktemp("first") / "world")


@pytest.fixture(scope="session")
def first_night(first_world: World) -> Night:
    """What the first run over the catalogue has made."""
    return first_world.run()


@pytest.fixture
def world(first_world: World, first_night: Night, tmp_path: Path) -> World:
    """A copy of the world after the first night."""
    return first_world.copied(tmp_path / "world")
