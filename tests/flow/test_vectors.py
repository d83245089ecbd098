"""Releases from precomputed vectors, without an encoder: Parquet or .npy, the same gates, the same bytes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.worlds import IDS, VECTORS, Night, World, assert_refused, shard_digests, vector_world, write_vectors
from support.tiny_release import unit_vectors

from indexing import open_release
from indexing.errors import ConfigError, ValidationFailed
from indexing.release.verify import verify_release
from indexing.store import open_store
from jobs.inputs.inputs import Inputs, read_inputs
from jobs.run import Run

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Night]:
    world = vector_world(tmp_path_factory.mktemp("vectors") / "world")
    return world, world.run()


def test_an_items_own_vector_finds_it_with_what_came_along(published: tuple[World, Night], tmp_path: Path) -> None:
    found = open_release(published[0].store_url, cache_dir=tmp_path).search(VECTORS, k=3)
    assert found.item_ids[:, 0].tolist() == IDS
    np.testing.assert_allclose(found.scores[:, 0], 1, atol=1e-5)
    metadata = found[7][0].metadata
    assert (metadata["title"], metadata["item_type"], metadata["label"]) == (IDS[7], "track", "label item-007")


def test_a_release_without_an_encoder_refuses_text(published: tuple[World, Night], tmp_path: Path) -> None:
    world, night = published
    assert night.release.encoder is None
    assert "encode" not in night.seconds
    with pytest.raises(ConfigError, match="release 1 has no encoder: pass vectors, not text"):
        open_release(world.store_url, cache_dir=tmp_path).search("piano")


def test_npy_with_ids_gives_the_bytes_of_parquet(published: tuple[World, Night], tmp_path: Path) -> None:
    world = vector_world(tmp_path / "npy")
    table = pq.read_table(world.folder / "vectors.parquet")
    pq.write_table(table.drop_columns("vector"), world.folder / "ids.parquet", row_group_size=70)
    np.save(world.folder / "vectors.npy", VECTORS)
    (world.folder / "vectors.parquet").unlink()
    paths = {"path": f"{world.folder}/vectors.npy", "ids": f"{world.folder}/ids.parquet"}
    assert shard_digests(world.changed(vectors=paths).run().release) == shard_digests(published[1].release)


@pytest.mark.case(20)
def test_a_catalogue_that_shrinks_past_the_gate_is_not_published(
    published: tuple[World, Night], tmp_path: Path
) -> None:
    world = published[0].copied(tmp_path / "world")
    write_vectors(world.folder, 200)
    with pytest.raises(ValidationFailed, match=r"tracks: change of row count is 0\.3333, expected ≤ 0\.2; nothing"):
        world.run()
    assert_refused(world)


@pytest.mark.case(30)
def test_a_night_whose_catalogue_is_replaced_while_it_is_read_exits_3_and_publishes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = vector_world(tmp_path / "world")

    def read_then_replace(run: Run) -> Inputs:
        inputs = read_inputs(run)
        write_vectors(world.folder, len(IDS))
        return inputs

    monkeypatch.setattr("jobs.nightly.read_inputs", read_then_replace)
    assert world.command("nightly", "-q") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{world.folder}/vectors.parquet: expected the file that this run has listed" in line
    assert not world.releases()


@pytest.mark.case(20)
@pytest.mark.parametrize(("num_equal", "num_others"), [(6000, 60), (1000, 2503)])
def test_however_many_items_are_equal_each_other_is_found(num_equal: int, num_others: int, tmp_path: Path) -> None:
    """Such as 60 albums among 6,000 episodes called "Trailer", and tracks among 1,000 that are called "[untitled]"."""
    equal, others = np.repeat(VECTORS[:1], num_equal, axis=0), unit_vectors(num_others, dim=16, seed=7)
    kinds = ["episode"] * num_equal + ["album"] * num_others
    ids = [f"{kind}-{row:04}" for row, kind in enumerate(kinds)]
    vectors = np.concatenate([equal, others])
    world = vector_world(tmp_path / "world")
    table = pa.table({"item_id": ids, "item_type": kinds, "vector": list(vectors)})
    pq.write_table(table, world.folder / "vectors.parquet")
    collections = {"everything": {"item_types": ["album", "episode"]}}
    world = world.changed(catalogue={"collections": collections}, index={"rows_per_shard": 10_000})
    release = world.run().release
    figures = release.validation["everything"]
    assert figures["self_match"] >= 0.999
    (shard,) = release.collections[0].shards
    assert (shard.num_items, shard.num_nodes) == (num_equal + num_others, num_others + 1)
    opened = open_release(world.store_url, cache_dir=tmp_path / "cache")
    found = opened.search(others, k=10)
    assert found.item_ids[:, 0].tolist() == ids[num_equal:]
    assert opened.search(equal[:1], k=num_equal).item_ids[0].tolist() == ids[:num_equal]
    verify_release(open_store(world.store_url), release)

    pq.write_table(table.slice(1), world.folder / "vectors.parquet")  # one of the equal ones is deleted
    assert world.run().release.collections[0].shards[0].index == shard.index
    opened = open_release(world.store_url, cache_dir=tmp_path / "cache")
    assert opened.search(equal[:1], k=3).item_ids[0].tolist() == ids[1:4]


def test_stages_run_one_by_one_on_the_artifacts_of_those_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = vector_world(tmp_path / "world")
    assert world.command("build") == 2
    assert "encode" in capsys.readouterr().err.splitlines()[-1]
    for stage in ("encode", "build", "validate", "publish"):
        assert not world.releases()
        assert world.command(stage) == 0
    assert [release.number for release in world.releases()] == [1]
