"""What search, releases and verify print and write; none of them needs Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.worlds import SYLLABLES

from indexing import OpenRelease, open_release
from indexing.release.commit import read_release
from indexing.store import open_store
from indexing.store.blobs import blob_key
from jobs.__main__ import main

Run = Any


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def opened(published: str) -> OpenRelease:
    return open_release(published)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Standard output of a command that ends well and says nothing else."""
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    return output.out


# --- search ---


def test_search_prints_the_hits_best_first(
    published: str, opened: OpenRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    query = opened.item_ids[7].as_py()
    lines = run(capsys, "search", published, query, "-k", 3).splitlines()
    hits = opened.search(query, k=3)
    assert len(lines) == 4
    for rank, (line, hit) in enumerate(zip(lines[1:], hits, strict=True), start=1):
        assert line.split() == [
            str(rank),
            f"{hit.score:.3f}",
            hit.collection,
            *f"title of {hit.item_id}".split(),
            *hit.item_id.split(),
        ]
    assert hits[0].item_id == query


def test_search_gives_ten_hits_by_default(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run(capsys, "search", published, "balark").splitlines()) == 1 + 10


def test_search_keeps_to_the_named_collections(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "search", published, "balark", "-k", 12, "--collection", "shows").splitlines()[1:]
    assert [line.split()[2] for line in lines] == ["shows"] * 12
    both = run(capsys, "search", published, "balark", "-k", 52, "--collection", "shows", "--collection", "tracks")
    assert len(both.splitlines()) == 53


def test_search_takes_an_older_release(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "search", published, "balark", "--release", 1) == run(capsys, "search", published, "balark")


def test_square_brackets_in_a_title_are_printed_as_they_are(
    published: str, opened: OpenRelease, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rich would take them for markup."""
    titles = pa.array(["[bold]Live[/bold] [1977]"] * 52)
    shards = [[shard, pa.table({"title": titles.slice(0, shard.num_items)})] for shard in opened.shards]
    monkeypatch.setattr("indexing.open_release", lambda *args, **kwargs: opened)
    for shard, table in shards:
        object.__setattr__(shard, "metadata", table)
    assert "[bold]Live[/bold] [1977]" in run(capsys, "search", published, "balark")


def write_queries(folder: Path, queries: list[str | None]) -> Path:
    path = folder / "queries.parquet"
    pq.write_table(pa.table({"query": queries, "weight": np.arange(len(queries))}), path)
    return path


def test_search_of_a_file_writes_every_hit_of_every_distinct_query(
    published: str, opened: OpenRelease, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = ["balark momint", "cerose", "balark momint", None, " ", "x" * 10_001, "nustorm"]
    path, out = write_queries(tmp_path, queries), tmp_path / "hits.parquet"
    main(["search", published, "--queries", str(path), "--out", str(out), "-k", "5"])
    table = pq.read_table(out)
    assert table.schema.equals(
        pa.schema(
            [
                ("query", pa.string()),
                ("rank", pa.int32()),
                ("item_id", pa.string()),
                ("score", pa.float32()),
                ("collection", pa.string()),
            ]
        )
    )
    distinct = ["balark momint", "cerose", "nustorm"]
    assert table["query"].to_pylist() == [query for query in distinct for _ in range(5)]
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5] * 3
    expected = opened.search(distinct, k=5)
    assert table["item_id"].to_pylist() == expected.item_ids.ravel().tolist()
    assert table["collection"].to_pylist() == expected.collections.ravel().tolist()
    np.testing.assert_array_equal(table["score"].to_numpy(), expected.scores.ravel())


def test_search_of_a_file_goes_by_batches(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_queries(tmp_path, [f"{word} balark" for word in SYLLABLES])
    tables = []
    for size in (7, 1000):
        monkeypatch.setattr("jobs.cli.search_file.BATCH_QUERIES", size)
        main(["search", published, "--queries", str(path), "--out", str(tmp_path / "hits.parquet"), "-k", "3"])
        tables.append(pq.read_table(tmp_path / "hits.parquet"))
    assert tables[0].num_rows == tables[1].num_rows == 3 * len(SYLLABLES)
    assert tables[0].drop_columns("score").equals(tables[1].drop_columns("score"))
    np.testing.assert_allclose(tables[0]["score"], tables[1]["score"], atol=1e-5)


# --- releases ---


def test_releases_as_json_are_objects_with_these_names(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(run(capsys, "releases", published, "--json"))
    release = read_release(open_store(published), 2)
    assert (
        rows[1].items()
        >= {
            "number": 2,
            "created_at": "2026-01-31T02:00:00+00:00",
            "kind": "build",
            "num_items": 52,
            "encoder": release.encoder.digest[:12] if release.encoder else None,
            "recall_at_10": 0.9712,
            "size_bytes": release.size_bytes,
        }.items()
    )
    assert [row["number"] for row in rows] == [1, 2]


def test_size_counts_each_blob_once(published: str) -> None:
    store = open_store(published)
    blobs = [info.size_bytes for info in store.list("blobs/")]
    assert read_release(store).size_bytes == sum(blobs)


def test_releases_are_a_table_for_people(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    head, first, second = run(capsys, "releases", published).splitlines()
    assert head.split()[:3] == ["number", "created", "at"]
    assert first.split()[:3] == ["1", "2026-01-31T02:00:00+00:00", "build"]
    assert second.split()[0] == "2"


def test_a_store_without_releases_lists_none_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "releases", tmp_path / "nothing", "--json")) == []
    assert not (tmp_path / "nothing").exists()


# --- verify ---


def test_verify_reads_every_byte_of_the_current_release(published: str, capsys: pytest.CaptureFixture[str]) -> None:
    release = read_release(open_store(published))
    text = f"release 2 is valid: {len(release.blobs())} blobs, {release.size_bytes / 1e6:,.1f} MB, 52 items\n"
    assert run(capsys, "verify", published).endswith(text)
    assert run(capsys, "verify", published, "--release", 1).endswith(text.replace("release 2", "release 1"))


def test_verify_finds_one_flipped_bit(store_url_: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, source = open_store(str(tmp_path / "copy")), open_store(store_url_)
    for info in source.list():
        copy.put(info.key, source.get(info.key))
    key = blob_key(read_release(copy).collections[0].shards[1].index.sha256)
    data = copy.get(key)
    copy.put(key, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    assert main(["verify", copy.url]) == 3
    output = capsys.readouterr()
    assert output.err.startswith("nightcrate: ") and output.err.count("\n") == 1
    assert key.rpartition("/")[2] in output.err


# --- the command line itself ---


def test_the_module_is_the_console_script(published: str) -> None:
    commands = ([sys.executable, "-m", "jobs"], [str(Path(sys.executable).with_name("nightcrate"))])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    outputs = [
        subprocess.run([*command, "releases", published, "--json"], capture_output=True, text=True, env=environment)
        for command in commands
    ]
    assert outputs[0].stdout == outputs[1].stdout != ""
    assert [output.returncode for output in outputs] == [0, 0]


def test_a_bug_is_one_line_with_exit_code_70_and_a_traceback_only_with_debug(
    published: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("gone\nsecond line")

    monkeypatch.setattr("jobs.cli.store.read_release", broken)
    assert main(["verify", published]) == 70
    error = capsys.readouterr().err
    assert error.startswith("nightcrate: a bug, KeyError: ") and error.count("\n") == 1
    assert error.endswith("; --debug shows where\n")


def test_an_interrupted_run_says_how_to_resume(
    published: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.cli.store.read_release", interrupted)
    assert main(["verify", published]) == 130
    assert capsys.readouterr().err == "nightcrate: interrupted; run again to resume from the last finished step\n"


def test_debug_shows_the_traceback(published: str) -> None:
    command = [sys.executable, "-m", "jobs", "verify", published, "--release", "9"]
    short, long = (
        subprocess.run([*command, *extra], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        for extra in ([], ["--debug"])
    )
    assert short.returncode == long.returncode == 2
    assert "Traceback" not in short.stderr
    assert "Traceback" in long.stderr and long.stderr.endswith(short.stderr)


def test_diff_counts_items_and_files_and_measures_what_queries_find(
    published: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"query": ["balark cemint", "kerose", "kerose"]}), tmp_path / "golden.parquet")
    arguments = ["diff", published, "1", "2", "--queries", str(tmp_path / "golden.parquet")]
    found = json.loads(run(capsys, *arguments, "--json"))
    assert found["collections"]["tracks"] == {"new": 0, "changed": 0, "unchanged": 40, "deleted": 0}
    assert (found["num_same_graphs"], found["num_shards"], found["overlap_at_10"]) == (3, 3, 1.0)
    assert found["drift"] == {"mean": 0.0, "percentile_95": 0.0}
    lines = run(capsys, *arguments).splitlines()
    assert ["tracks", "0", "0", "40", "0"] in [line.split() for line in lines]
    assert "overlap@10 1.0000 of the hits are in both" in lines


def test_diff_with_a_release_that_does_not_exist_says_which_there_are(
    published: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", published, "1", "9"]) == 2
    assert "no release 9" in capsys.readouterr().err
