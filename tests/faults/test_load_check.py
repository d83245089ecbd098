"""A graph file that crashes hnswlib fails the validation, and kills neither driver nor worker."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.conftest import GetNights
from faults.nights import Nights, run
from flow.worlds import World
from support.tiny_release import DIM, PARAMS, unit_vectors

from indexing.dense.hnsw import HEADER, build_index
from indexing.dense.load_check import check_loads
from indexing.errors import ValidationFailed

NUM_ITEMS = 300
Alter = Callable[[bytes], bytes]


def far_links(data: bytes) -> bytes:
    """Every link of the lowest layer leads far outside the file."""
    changed = bytearray(data)
    _, _, count, element_bytes, *_ = HEADER.unpack(data[: HEADER.size])
    for start in range(HEADER.size, HEADER.size + count * element_bytes, element_bytes):
        num_links = struct.unpack_from("<H", changed, start)[0]
        struct.pack_into(f"<{num_links}I", changed, start + 4, *[0xFFFFFF00] * num_links)
    return bytes(changed)


def with_header(position: int, value: int) -> Alter:
    def alter(data: bytes) -> bytes:
        fields = list(HEADER.unpack(data[: HEADER.size]))
        fields[position] = value
        return HEADER.pack(*fields) + data[HEADER.size :]

    return alter


DAMAGES: dict[str, tuple[Alter, str]] = {
    "far links": (far_links, r"crashes the process \(SIGSEGV\)"),
    "far entry point": (with_header(7, 0xFFFFFFF0), r"crashes the process \(SIGSEGV\)"),
    "huge": (with_header(1, 2**40), "Not enough memory"),
    "cut": (lambda data: data[:-1], "corrupted"),
    "of zeros": (lambda data: data[: HEADER.size] + bytes(len(data) - HEADER.size), "cannot be served"),
    "other dim": (with_header(5, 64), "expected dim 16"),
}


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    build_index(unit_vectors(NUM_ITEMS), PARAMS, tmp_path / "graph")
    return tmp_path / "graph"


def test_a_valid_graph_passes(graph: Path) -> None:
    check_loads(graph, DIM, NUM_ITEMS, "tracks/0")


@pytest.mark.case(10, 24)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_graph_that_cannot_be_served_fails_by_the_name_of_its_shard(graph: Path, damage: str) -> None:
    alter, words = DAMAGES[damage]
    graph.write_bytes(alter(graph.read_bytes()))
    with pytest.raises(ValidationFailed, match=f"^tracks/0: .*{words}") as caught:
        check_loads(graph, DIM, NUM_ITEMS, "tracks/0")
    assert "\n" not in str(caught.value)


def test_a_graph_that_takes_too_long_fails(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexing.dense.load_check.TIMEOUT_S", 0.01)
    with pytest.raises(ValidationFailed, match=r"tracks/0: its graph was not loaded and searched within 0\.01 s"):
        check_loads(graph, DIM, NUM_ITEMS, "tracks/0")


@pytest.fixture
def nights(get_nights: GetNights) -> Nights:
    return get_nights("vectors")


@pytest.fixture
def built(nights: Nights, tmp_path: Path) -> World:
    """The second night up to its built shards."""
    world = nights.disturbed(tmp_path / "world", f"file://{tmp_path}/stores")
    for stage in ("encode", "build"):
        assert world.command(stage) == 0
    return world


def newest_shard(world: World) -> tuple[Path, dict[str, object]]:
    """(the file of a shard's graph, the marker that records it) of the build that was made last."""
    folder = Path(str(world.config["workspace"]).removeprefix("file://"))
    marker = max(folder.glob("builds/*/done.json"), key=lambda path: path.stat().st_mtime)
    return marker, json.loads(marker.read_text())


def graph_path(world: World, shard: dict[str, Any]) -> Path:
    folder = Path(str(world.config["workspace"]).removeprefix("file://"))
    return folder / "shards" / "sha256" / str(shard["entry"]["index"]["sha256"])


@pytest.mark.case(10, 20)
@pytest.mark.timeout(600)
def test_a_night_with_a_graph_that_crashes_hnswlib_exits_4(built: World) -> None:
    """Its digest is recorded as if it had been built like this: only loading it can show that."""
    marker, content = newest_shard(built)
    shard: Any = content["shards"][-1]  # type: ignore[index]  # of tracks: built whole, the shows have a delta
    data = far_links(graph_path(built, shard).read_bytes())
    shard["entry"]["index"]["sha256"] = hashlib.sha256(data).hexdigest()
    graph_path(built, shard).write_bytes(data)
    marker.write_text(json.dumps(content))
    errors = run(built, expected=4)
    assert f"{shard['collection']}/{shard['entry']['number']}: loading and searching its graph crashes" in errors
    assert [release.number for release in built.releases()] == [1]


@pytest.mark.case(10)
@pytest.mark.timeout(600)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_shard_that_is_altered_after_it_was_built_is_not_published(built: World, damage: str) -> None:
    _, content = newest_shard(built)
    shard: Any = content["shards"][-1]  # type: ignore[index]  # of tracks: built whole, the shows have a delta
    path = graph_path(built, shard)
    data = path.read_bytes()
    path.write_bytes(data[:-1] if damage == "cut" else data[:200] + bytes([data[200] ^ 1]) + data[201:])
    errors = run(built, expected=3)
    assert "is not what was built; delete it and run again" in errors
    assert [release.number for release in built.releases()] == [1]
