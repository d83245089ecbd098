"""Bad input: the right exit code, one line that says what was expected and what was found, and nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.shared_ray import SharedRay
from flow.worlds import ROOT, World, make_rows, publish_without_ray, write_rows

from jobs.__main__ import main

NO_SUCH = "http://127.0.0.1:9"
"""An endpoint where nothing listens: port 9 is `discard`."""


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(exit code, arguments …) runs the command in this process and returns its one line."""

    def refused_(exit_code: int, *arguments: object) -> str:
        code = main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert code == exit_code, error
        check_line(error)
        return error

    return refused_


def check_line(error: str) -> None:
    assert error.startswith("nightcrate: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


# --- configuration, catalogue and store, before Ray starts ---


def misspelt(world: World) -> World:
    return world.changed(index={"rows_per_shrad": 5})


def missing_catalogue(world: World) -> World:
    return world.changed(catalogue={"path": f"{world.folder}/nothing"})


def empty_catalogue(world: World) -> World:
    shutil.rmtree(world.folder / "catalogue")
    write_rows(world.folder / "catalogue" / "a.parquet", make_rows())
    table = pq.read_table(world.folder / "catalogue" / "a.parquet")
    pq.write_table(table.slice(0, 0), world.folder / "catalogue" / "a.parquet")
    return world


def wrong_types(world: World) -> World:
    path = world.folder / "catalogue" / "b.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "item_id", pa.array([0.5] * table.num_rows)), path)
    return world


def missing_column(world: World) -> World:
    path = world.folder / "catalogue" / "b.parquet"
    pq.write_table(pq.read_table(path).drop_columns("title"), path)
    return world


def no_parquet(world: World) -> World:
    (world.folder / "catalogue" / "c.parquet").write_text("item_id,title\n1,So What\n")
    return world


def missing_model(world: World) -> World:
    return world.changed(encoder={"model": f"{world.folder}/no-model"})


def missing_package(world: World) -> World:
    return world.changed(encoder={"model": "package://no_such_package/model"})


def half_a_model(world: World) -> World:
    shutil.copytree(world.config["encoder"]["model"], world.folder / "model")
    (world.folder / "model" / "tokenizer.json").unlink()
    return world.changed(encoder={"model": f"{world.folder}/model"})


def store_is_a_file(world: World) -> World:
    (world.folder / "file").write_text("")
    return world.changed(store=f"file://{world.folder}/file")


def workspace_is_a_file(world: World) -> World:
    (world.folder / "file").write_text("")
    return world.changed(workspace=f"file://{world.folder}/file")


def unknown_scheme(world: World) -> World:
    return world.changed(store="gs://bucket/prefix")


def unknown_field(world: World) -> World:
    return world.changed(catalogue={"text": {"default": "{titel}"}})


def unreachable_s3(world: World) -> World:
    return world.changed(store="s3://bucket/prefix", s3={"endpoint": NO_SUCH})


CASES: dict[Callable[[World], World], tuple[int, str]] = {
    misspelt: (2, "unknown key index.rows_per_shrad; did you mean rows_per_shard?"),
    missing_catalogue: (
        2,
        "catalogue.path: expected a Parquet, CSV or JSON lines file or a folder of them, found none at ",
    ),
    empty_catalogue: (3, "catalogue.path: expected rows at "),
    wrong_types: (3, "b.parquet: expected column item_id as string, got double"),
    missing_column: (3, "b.parquet: expected columns item_id, item_type, title; title not found"),
    no_parquet: (3, "c.parquet: expected a Parquet file"),
    missing_model: (2, "encoder.model: expected a model folder, got "),
    missing_package: (2, "encoder.model: expected an installed package 'no_such_package'"),
    half_a_model: (2, "expected a tokenizer"),
    store_is_a_file: (2, "expected a folder for the store "),
    workspace_is_a_file: (2, "expected a folder for the store "),
    unknown_scheme: (2, "expected s3://bucket/prefix, file:///folder, file://./folder or a path, got "),
    unknown_field: (2, "catalogue.text.default: the catalogue has no field 'titel'; did you mean 'title'?"),
}


@pytest.mark.parametrize("stage", ["nightly", "plan"])
@pytest.mark.parametrize("break_it", CASES, ids=lambda break_it: break_it.__name__)
def test_what_is_wrong_with_the_input_is_reported_before_anything_is_written(
    fresh_world: World, refused: Callable[..., str], break_it: Callable[[World], World], stage: str
) -> None:
    exit_code, message = CASES[break_it]
    world = break_it(fresh_world)
    before = world.files()
    assert message in refused(exit_code, stage, "-c", world.write_config())
    assert world.files() == before


def test_a_wrong_override_is_reported_too(fresh_world: World, refused: Callable[..., str]) -> None:
    path = fresh_world.write_config()
    assert "unknown key index.m" in refused(2, "nightly", "-c", path, "index.m=24")
    assert "does not exist; configs/ has examples" in refused(2, "nightly", "-c", fresh_world.folder / "no.yaml")


def test_a_store_that_cannot_be_reached_stops_a_night(
    fresh_world: World, refused: Callable[..., str], s3_environment: dict[str, str], short_pauses: None
) -> None:
    missing = fresh_world.changed(store="s3://no-such-bucket/prefix")
    assert "no such bucket for s3://no-such-bucket/prefix" in refused(6, "nightly", "-c", missing.write_config())
    missing = fresh_world.changed(workspace="s3://no-such-bucket/prefix")
    assert "no such bucket for s3://no-such-bucket/prefix" in refused(6, "nightly", "-c", missing.write_config())
    down = fresh_world.changed(store="s3://bucket/prefix", s3={"endpoint": NO_SUCH})
    assert f"cannot connect to {NO_SUCH}" in refused(6, "nightly", "-c", down.write_config())


def test_missing_credentials_are_named(
    fresh_world: World,
    refused: Callable[..., str],
    s3_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    world = fresh_world.changed(store="s3://bucket/prefix")
    assert "no usable AWS credentials found for s3://bucket" in refused(6, "nightly", "-c", world.write_config())
    assert "no usable AWS credentials found for s3://bucket" in refused(6, "releases", "s3://bucket/prefix")


def test_wrong_credentials_are_named_and_not_shown(
    fresh_world: World,
    refused: Callable[..., str],
    s3_store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    line = refused(6, "nightly", "-c", fresh_world.changed(store=s3_store_url).write_config())
    assert f"access to {s3_store_url}" in line and "denied" in line
    assert "canary" not in line


def test_a_ray_cluster_that_does_not_exist_is_named(fresh_world: World, refused: Callable[..., str]) -> None:
    path = fresh_world.write_config()
    assert "no Ray cluster at 127.0.0.1:9" in refused(6, "nightly", "-c", path, "ray.address=127.0.0.1:9")
    assert not fresh_world.releases()


# --- rows, which only Ray's tasks see ---


@pytest.mark.case(19)
def test_too_many_bad_rows_stop_the_run_before_encoding(fresh_world: World, shared_ray: SharedRay) -> None:
    """In a separate process, to see everything that a user would."""
    rows = make_rows()
    write_rows(fresh_world.folder / "catalogue" / "c.parquet", rows[:20])
    with fresh_world.start("nightly", **shared_ray.driver_environment()) as process:
        _, error = process.communicate()
    assert process.returncode == 3
    lines = [line for line in error.splitlines() if line.startswith("nightcrate: ")]
    assert len(lines) == 1 and error.endswith(lines[0] + "\n")
    assert "expected at most 5 bad rows (catalogue.max_quarantined: 0.01), got 24 of 524; " in lines[0]
    assert "23 of them: item_id is already in an earlier row, such as " in lines[0]
    assert "Traceback" not in error
    assert_nothing_made(fresh_world)


@pytest.mark.case(19)
def test_a_collection_without_items_stops_the_run_before_encoding(
    fresh_world: World, refused: Callable[..., str]
) -> None:
    collections = {**fresh_world.config["catalogue"]["collections"], "books": {"item_types": ["audiobook"]}}
    path = fresh_world.changed(catalogue={"collections": collections}).write_config()
    line = refused(3, "nightly", "-c", path)
    assert "expected items of type audiobook for the collection books, got no good row" in line
    assert_nothing_made(fresh_world)


def assert_nothing_made(world: World) -> None:
    """No vector in the workspace, no blob and no release in the store, and the lease is released."""
    assert not list(world.folder.glob("workspace/items/*/vectors-*"))
    assert not list(world.folder.glob("store/blobs")) + list(world.folder.glob("store/releases"))
    (lease,) = world.folder.glob("store/leases/*.json")
    assert json.loads(lease.read_text())["is_free"]


# --- search, releases, verify ---


@pytest.fixture(scope="module")
def store_url_(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    return publish_without_ray(tmp_path_factory.mktemp("published"), tiny_model)


SEARCHES: list[tuple[list[str], int, str]] = [
    ([""], 2, "query: expected a text, got an empty or blank one"),
    ([" \n"], 2, "query: expected a text, got an empty or blank one"),
    (["x" * 100_000], 2, "query: expected at most 10000 characters, got 100000"),
    (["balark", "-k", "53"], 2, "k=53: expected 1 to 52, the number of items in the searched collections"),
    (["balark", "-k", "13", "--collection", "shows"], 2, "k=13: expected 1 to 12"),
    (["balark", "-k", "0"], 2, "k=0: expected 1 to 52"),
    (["balark", "-k", "-1"], 2, "k=-1: expected 1 to 52"),
    (["balark", "--collection", "show"], 2, "unknown collection 'show': did you mean shows?"),
    (["balark", "--release", "9"], 2, "no release 9 in "),
    (["balark", "--release", "0"], 2, "no release 0 in "),
    (["balark", "--release", "-3"], 2, "no release -3 in "),
    ([], 2, "expected either QUERY, or --queries FILE and --out FILE"),
    (["balark", "--out", "hits.parquet"], 2, "expected either QUERY, or --queries FILE and --out FILE"),
    (["--queries", "q.parquet"], 2, "expected either QUERY, or --queries FILE and --out FILE"),
    (["balark", "--queries", "q.parquet", "--out", "hits.parquet"], 2, "expected either QUERY, or --queries FILE"),
    (["--queries", "nothing.parquet", "--out", "hits.parquet"], 2, "--queries: expected a Parquet file"),
    (["--queries", "bad.parquet", "--out", "hits.parquet"], 3, "bad.parquet: expected a Parquet file"),
    (["--queries", "other.parquet", "--out", "hits.parquet"], 3, "expected a column query of texts, got text"),
    (["--queries", "blank.parquet", "--out", "hits.parquet"], 3, "--queries: expected queries in blank.parquet"),
    (["--queries", "long.parquet", "--out", "hits.parquet"], 3, "long.parquet, got none that can be searched for"),
    (["--queries", "q.parquet", "--out", "hits.parquet", "-k", "99"], 2, "k=99: expected 1 to 52"),
    (["--queries", "q.parquet", "--out", "no/folder/hits.parquet"], 2, "--out: cannot write no/folder/hits.parquet"),
    (["--queries", "q.parquet", "--out", "folder"], 2, "--out: cannot write folder: Is a directory"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "message"), SEARCHES, ids=lambda value: str(value)[:50])
def test_a_search_that_cannot_be_answered_writes_nothing(
    store_url_: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    arguments: list[str],
    exit_code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tables: dict[str, Any] = {
        "q": {"query": ["balark"]},
        "other": {"text": ["balark"]},
        "blank": {"query": [" ", None]},
        "long": {"query": ["x" * 100_000]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), f"{name}.parquet")
    Path("bad.parquet").write_bytes(b"PAR1 cut short")
    Path("folder").mkdir()
    before = sorted(os.listdir())
    assert message in refused(exit_code, "search", store_url_, *arguments)
    assert sorted(os.listdir()) == before and not os.listdir("folder")


@pytest.mark.parametrize("command", [["search", "STORE", "balark"], ["releases", "STORE"], ["verify", "STORE"]])
def test_a_store_that_does_not_exist_is_named_and_not_created(
    tmp_path: Path, refused: Callable[..., str], command: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    for name, message in (("nothing", "no release in "), ("file", "expected a folder for the store ")):
        arguments = [argument.replace("STORE", f"file://{tmp_path}/{name}") for argument in command]
        assert message in refused(2, *arguments)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("command", [["search", "STORE", "balark"], ["releases", "STORE"], ["verify", "STORE"]])
def test_a_bucket_that_does_not_exist_is_named(
    refused: Callable[..., str], s3_environment: dict[str, str], command: list[str]
) -> None:
    arguments = [argument.replace("STORE", "s3://no-such-bucket/prefix") for argument in command]
    assert "no such bucket for s3://no-such-bucket/prefix" in refused(6, *arguments)


def test_a_release_that_does_not_exist_is_named(store_url_: str, refused: Callable[..., str]) -> None:
    assert f"no release 9 in {store_url_}: it has 1 to 2" in refused(2, "verify", store_url_, "--release", "9")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["search"],
        ["nightly"],
        ["nightly", "-c"],
        ["search", "x", "--nothing"],
        ["search", "x", "y", "-k", "ten"],
        ["verify", "x", "--release", "a"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    check_line(capsys.readouterr().err)


def test_the_line_is_all_that_a_process_says(store_url_: str) -> None:
    command = [sys.executable, "-m", "jobs", "search", store_url_, " "]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr)
