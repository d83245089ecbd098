"""The whole rebuild, on real Ray: what one night publishes, and what the next nights may skip."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from flow.worlds import (
    NUM_EPISODES,
    NUM_SAME_TITLE,
    NUM_SHOWS,
    NUM_TRACKS,
    Night,
    World,
    assert_refused,
    make_rows,
    shard_digests,
    write_rows,
)
from support.documented import columns_of

from cluster.fanout import fan_out
from indexing import open_release
from indexing.encoder import resolve_dtype
from indexing.errors import ValidationFailed
from indexing.id_keys import id_keys, range_of
from indexing.key_ranges import shard_range
from indexing.store import open_store
from indexing.store.blobs import blob_key
from indexing.store.local import LocalStore
from jobs.config.load import load_config
from jobs.plan import make_plan
from jobs.workspace.buckets import buckets_of, num_buckets

ROWS = make_rows()
TITLES = {row["item_id"]: row["title"] for row in ROWS}


pytestmark = pytest.mark.timeout(600)


pytestmark = pytest.mark.timeout(600)


def test_first_night_publishes_every_good_row_as_release_one(first_night: Night, first_world: World) -> None:
    (release,) = first_world.releases()
    assert (release.number, release.parent, release.kind, release.name) == (1, None, "build", "flow")
    assert {collection.name: collection.num_items for collection in release.collections} == {
        "tracks": NUM_TRACKS,
        "shows": NUM_SHOWS + NUM_EPISODES,
    }
    found = open_release(first_world.store_url, cache_dir=first_world.folder.parent / "cache")
    assert sorted(found.item_ids.to_pylist()) == sorted(TITLES)
    assert first_night.release == release


def test_shards_follow_rows_per_shard(first_night: Night) -> None:
    assert {collection.name: len(collection.shards) for collection in first_night.release.collections} == {
        "tracks": 3,
        "shows": 1,
    }


def test_a_title_finds_its_item_with_all_that_came_along(first_world: World, tmp_path: Path) -> None:
    found = open_release(first_world.store_url, cache_dir=tmp_path)
    tracks = [row for row in ROWS[NUM_SAME_TITLE + 1 :: 40] if row["item_type"] == "track"]
    for row, hits in zip(tracks, found.search([row["title"] for row in tracks], k=3), strict=True):
        assert (hits[0].item_id, hits[0].collection) == (row["item_id"], "tracks")
        assert hits[0].score == pytest.approx(1, abs=1e-3)
        assert (
            hits[0].metadata | {name: row[name] for name in ("title", "creators", "isrc", "year")} == hits[0].metadata
        )
    assert len(tracks) > 5


def test_identical_texts_of_a_bucket_are_encoded_once_and_share_a_vector(
    first_night: Night, first_world: World
) -> None:
    same = {row["item_id"] for row in ROWS[: NUM_SAME_TITLE + 1]}
    num_same = len(set(buckets_of(id_keys(same), num_buckets(len(ROWS))).tolist()))
    assert first_night.num_encoded == len(ROWS) - len(same) + num_same < len(ROWS)
    hits = open_release(first_world.store_url).search(ROWS[0]["title"], k=len(same))
    assert {hit.item_id for hit in hits} == same
    assert len({hit.score for hit in hits}) == 1


@pytest.mark.case(19)
def test_of_rows_with_one_id_the_first_stays_and_the_rest_are_counted(first_night: Night, first_world: World) -> None:
    assert first_night.quarantined == {
        "item_id is already in an earlier row, such as show-003, track-007, track-011": 3,
        "title is null or blank": 1,
    }
    hits = open_release(first_world.store_url).search(TITLES["track-100"], k=len(ROWS))
    assert {hit.item_id: hit.metadata["title"] for hit in hits} == TITLES


@pytest.mark.case(19)
def test_bad_rows_are_in_quarantine_with_their_reason_and_source(first_night: Night, first_world: World) -> None:
    (path,) = first_world.folder.glob("workspace/items/*/quarantine.csv")
    first, *repeated = csv.DictReader(path.open(newline=""))
    assert (first["item_id"], first["reason"], first["file"]) == ("x", "title is null or blank", "b.parquet")
    assert first["excerpt"].startswith("item_id: x; ")
    assert sorted(row["item_id"] for row in repeated) == ["show-003", "track-007", "track-011"]


def test_release_says_what_it_was_validated_with(first_night: Night, first_world: World) -> None:
    release = first_night.release
    for collection in release.collections:
        figures = release.validation[collection.name]
        assert figures["ef_search"] == collection.ef_search
        assert figures["items"]["recall_at_10"] >= 0.95
        assert figures["queries"]["num_queries"] == 40
        assert figures["queries"]["recall_at_10"] >= 0.95
        assert figures["self_match"] >= 0.99
        loss = figures["recall_loss"]["all"]
        assert loss["graph"] + loss["shard_merge"] == pytest.approx(1 - figures["items"]["recall_at_10"])
        assert loss["shard_merge"] == pytest.approx(0, abs=0.005)
        assert 0 <= loss["vector_precision"] < 0.1
    assert release.encoder is not None
    settings = load_config(str(first_world.write_config())).encoder.settings()
    assert (release.encoder.dtype, release.encoder.resolved_dtype) == ("auto", resolve_dtype(settings))
    assert release.report is not None
    report = json.loads(open_store(first_world.store_url).get(blob_key(release.report.sha256)))
    assert report["collections"] == release.validation
    assert all(gate["holds"] for gate in report["gates"])


def test_a_second_night_without_changes_does_nothing_and_publishes_nothing(world: World, first_night: Night) -> None:
    before = artifacts(world)
    night = world.run()
    assert night.release == first_night.release
    assert night.outcome.published and not night.outcome.published.is_new
    assert not night.seconds
    assert artifacts(world) == before


def artifacts(world: World) -> dict[str, tuple[int, int]]:
    """All files but the lease and the note that the store keeps conditions, which runs write."""
    return {path: state for path, state in world.files().items() if not {"leases", "preflight"} & set(Path(path).parts)}


def test_a_dry_run_prints_configuration_and_plan_and_writes_nothing(
    fresh_world: World, first_night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fresh_world.files()
    assert fresh_world.command("nightly", "--dry-run", "index.M=9") == 0
    assert fresh_world.files() == before
    printed, _, plan = capsys.readouterr().out.partition(" collection ")
    shown = yaml.safe_load(printed)
    assert (shown["index"]["M"], shown["validation"]["num_samples"]) == (9, 1000)
    assert shown["catalogue"] == {**fresh_world.config["catalogue"], "columns": {}, "max_quarantined": 0.01}
    lines = [line.split() for line in plan.splitlines()]
    assert ["tracks", "360", "3"] in lines and ["shows", "140", "1"] in lines
    assert ["rows", "504,", "4", "invalid"] in lines
    assert f"encode {first_night.num_encoded} texts; 0 are reused".split() in lines


def test_queries_that_find_too_much_else_than_before_stop_the_night(world: World, first_night: Night) -> None:
    rows = [{**row, "title": f"{row['title']} {row['item_id']} live at home"} for row in ROWS]
    shutil.rmtree(world.folder / "catalogue")
    write_rows(world.folder / "catalogue" / "all.parquet", rows)
    with pytest.raises(ValidationFailed, match=r"all: overlap@10 of queries is 0\.\d+, expected ≥ 0\.99"):
        world.changed(validation={**world.config["validation"], "min_overlap": 0.99}).run()
    assert world.releases() == [first_night.release]


def test_publish_always_makes_a_release_of_the_same_blobs(world: World, first_night: Night) -> None:
    night = world.changed(publish={"always": True}).run()
    assert [release.number for release in world.releases()] == [1, 2]
    assert night.release.parent == 1
    assert shard_digests(night.release) == shard_digests(first_night.release)
    assert night.outcome.published is not None
    uploads = night.outcome.published.uploads
    assert uploads.uploaded == 1  # the report, which compares with the parent now
    assert uploads.reused == len(night.release.blobs()) - 1


def test_only_what_has_changed_is_encoded_and_built_just_as_plan_has_said(world: World, first_night: Night) -> None:
    rows = {row["item_id"]: row for row in ROWS if row["item_id"] != "show-007"}
    for item_id in ("track-050", "track-051"):
        rows[item_id] = {**rows[item_id], "title": f"{TITLES[item_id]} live"}
    rows["track-new"] = {**rows["track-060"], "item_id": "track-new", "title": "never heard before"}
    shutil.rmtree(world.folder / "catalogue")
    write_rows(world.folder / "catalogue" / "all.parquet", list(rows.values()))
    config, before = load_config(str(world.write_config())), world.files()

    plan = make_plan(config)

    assert world.files() == before
    assert plan.changes == {"new": 1, "changed": 2, "unchanged": len(ROWS) - 3, "deleted": 1}
    assert plan.num_reused == first_night.num_encoded - 3

    night = world.run()

    assert plan.num_to_encode == night.num_encoded == 3
    assert plan.num_rows - plan.num_bad == night.release.num_items == len(rows)
    assert plan.collections == {
        collection.name: (collection.num_items, len(collection.shards)) for collection in night.release.collections
    }
    assert plan.index_bytes == pytest.approx(sum_index_bytes(night), rel=0.1)
    assert open_release(world.store_url).search("never heard before", k=1)[0].item_id == "track-new"
    # An item's shard follows from its id alone, so those three cannot have touched a shard that holds none of them.
    touched = {
        name
        for name, digests in shard_digests(night.release).items()
        if digests != shard_digests(first_night.release)[name]
    }
    assert touched == {"shows/0", *shards_of(["track-050", "track-051", "track-new"], 3)}


def sum_index_bytes(night: Night) -> int:
    return sum(shard.index.size_bytes for collection in night.release.collections for shard in collection.shards)


def shards_of(track_ids: list[str], total: int) -> set[str]:
    ranges = [shard_range(number, total) for number in range(total)]
    return {f"tracks/{number}" for number in range_of(id_keys(track_ids), ranges)}


def test_the_whole_path_on_s3(fresh_world: World, s3_store_url: str, first_night: Night, tiny_model: Path) -> None:
    put_folder(fresh_world.folder / "catalogue", f"{s3_store_url}/catalogue")
    put_folder(tiny_model, f"{s3_store_url}/model")
    world = fresh_world.changed(
        store=f"{s3_store_url}/store",
        workspace=f"{s3_store_url}/workspace",
        catalogue={"path": f"{s3_store_url}/catalogue/"},
        encoder={"model": f"{s3_store_url}/model"},
        ray={"encode_actors": 2},
    )
    night = world.run()
    assert [release.number for release in world.releases()] == [1]
    assert shard_digests(night.release) == shard_digests(first_night.release)
    assert open_release(world.store_url).search(TITLES["track-200"], k=1)[0].item_id == "track-200"


def put_folder(folder: Path, url: str) -> None:
    source, target = LocalStore(folder), open_store(url)
    for info in source.list():
        target.put(info.key, source.get(info.key))


@pytest.mark.case(20)
def test_a_graph_that_cannot_reach_the_recall_target_is_not_published(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = world.changed(index={"M": 2, "ef_construction": 2, "recall_target": 1.0})
    assert coarse.command("nightly") == 4
    line = capsys.readouterr().err
    assert re.match(r"nightcrate: \d+ of \d+ gates fail: .*recall@10 of .* is 0\.\d+, expected ≥ 1; .*\n$", line)
    assert_refused(coarse)
    assert "nothing was published; report: " in line


def test_files_of_the_workspace_have_the_documented_columns(fresh_world: World) -> None:
    fresh_world.run("encode")
    for section, kind in (("Rows", "ids"), ("New rows", "new"), ("Vectors", "vectors")):
        schema = pq.read_schema(next(fresh_world.folder.glob(f"workspace/items/*/{kind}-*.parquet")))
        found = [(field.name, re.sub(r"\w+: |\[32\]$", "", str(field.type))) for field in schema]
        assert found == [(name, column.replace("[dim]", "")) for name, column in columns_of(section)]


def test_a_report_is_the_same_whichever_shard_was_measured_first(
    fresh_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_world.run("build")
    reports = []
    for is_backwards in (False, True):

        def in_order(*arguments: Any, is_backwards: bool = is_backwards, **settings: Any) -> list[Any]:
            return sorted(fan_out(*arguments, **settings), key=lambda one: str(one[0]), reverse=is_backwards)

        for module in ("inspect", "shard_search"):
            monkeypatch.setattr(f"jobs.quality.{module}.fan_out", in_order)
        validated = fresh_world.copied(tmp_path / str(is_backwards)).run("validate").outcome.validated
        assert validated is not None
        reports.append(validated.report.to_bytes())
    assert reports[0] == reports[1]
