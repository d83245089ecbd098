"""Whatever rows come, each is indexed, or set aside with a reason, or the run ends with exit code 2 or 3 and one line.

Nights run in this process and without Ray. A failure of the long form names the seed of its examples.
"""

import csv
import json
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.worlds import World
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.any_rows import TEXTS, Written, beir_folders, csv_files, json_files, log_files, npy, parquet_files, vectors
from support.inline_ray import run_inline
from support.tiny_encoder import write_tiny_encoder

from indexing import open_release
from indexing.catalogue.contract import conform_schema, conform_table, split_rows
from indexing.encoder import load_encoder, load_tokeniser
from indexing.errors import ConfigError, DataError
from jobs.__main__ import main
from jobs.cli.output import one_line
from jobs.cli.search import hit_records, print_hits
from jobs.inputs.beir import read_beir
from jobs.inputs.interactions import read_interactions
from jobs.training.encoder.pairs import clicked_pairs, reformulated_pairs

pytestmark = [pytest.mark.case(19), pytest.mark.timeout(3600)]
SOUND = pa.table({"item_id": ["sound 1", "sound 2"], "item_type": ["track"] * 2, "title": ["t", "u"]})
"""Rows without a fault, so that most catalogues have some."""
SOUND_VECTORS = pa.array([[1.0, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.5]], pa.list_(pa.float32()))
Files = list[Written]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("model"), [" ".join(TEXTS)])


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch)
    for module in ("jobs.stages.encode_bucket", "jobs.inputs.encoder"):
        monkeypatch.setattr(f"{module}.load_encoder", cache(load_encoder))
    monkeypatch.setattr("jobs.stages.encode_bucket.load_tokeniser", cache(load_tokeniser))
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("jobs.nightly.delete_work", lambda workspace, outcome: None)  # `check_night` reads it


def world_of(folder: Path, **sections: Any) -> World:
    """Any share of rows may be set aside, and no gate fails that measures how good hits are."""
    config: dict[str, Any] = {
        "name": "any",
        "store": f"file://{folder}/store",
        "workspace": f"file://{folder}/workspace",
        "catalogue": {"collections": {"tracks": {"item_types": ["track"]}}, "max_quarantined": 1},
        "validation": {"min_self_match": 0, "min_shard_recall": 0, "max_row_change": 1000, "num_samples": 2},
        "index": {"recall_target": 0.001, "M": 4, "ef_construction": 8, "rows_per_shard": 8, "compact_at": 1},
    }
    return World(folder, config).changed(**sections)


def text_world(folder: Path, model: Path, template: str) -> World:
    catalogue = {"path": f"{folder}/rows", "text": {"default": template}}
    return world_of(folder, catalogue=catalogue, encoder={"model": str(model), "max_tokens": 8})


def write_files(folder: Path, files: Files) -> int:
    """Into an empty folder; returns the number of rows."""
    for path in folder.rglob("*.*"):
        path.unlink()
    for file in files:
        file.write(folder)
    return sum(file.num_rows for file in files)


def sound_file(**more: pa.Array) -> Written:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({**dict(zip(SOUND.column_names, SOUND.columns, strict=True)), **more}), sink)
    return Written("sound.parquet", sink.getvalue().to_pybytes(), SOUND.num_rows)


def check_night(world: World, num_rows: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs a night over `num_rows` rows, and looks what became of each."""
    before = len(world.releases())
    if command(world, "plan", capsys) or command(world, "nightly", capsys):
        assert len(world.releases()) == before
        return
    assert main(["verify", world.store_url, "-q"]) == 0
    done = max(world.folder.glob("workspace/items/*/done.json"), key=lambda path: path.stat().st_mtime_ns)
    prepared = json.loads(done.read_text())
    good = {item_id for path in done.parent.glob("ids-*") for item_id in pq.read_table(path)["item_id"].to_pylist()}
    bad, duplicates = read_set_aside(done.parent, "bad"), read_set_aside(done.parent, "duplicates")
    assert prepared["num_rows"] == len(good) + len(bad) + len(duplicates) == num_rows
    assert not bad.keys() & duplicates.keys()
    assert all(bad.values())
    assert sum(prepared["quarantined"].values()) == len(bad) + len(duplicates)
    release = world.releases()[-1]
    assert release.num_items == len(good) == sum(prepared["num_items"].values())
    known = known_ids(world.folder / "rows")
    assert {item_id for place, item_id in known.items() if place not in bad} <= good
    check_search(world, good)


def known_ids(folder: Path) -> dict[tuple[str, int], str]:
    """File and row → the id that stands there, as text, of Parquet files and of the types whose text is certain."""
    found = {}
    for path in folder.rglob("*.parquet"):
        name = path.relative_to(folder).as_posix()
        for row, value in enumerate(pq.ParquetFile(path).read(columns=["item_id"])["item_id"], start=1):
            if isinstance(value, pa.StringScalar | pa.LargeStringScalar | pa.StringViewScalar) and value.is_valid:
                found[name, row] = value.as_buffer().to_pybytes().decode(errors="replace")
            elif isinstance(value, pa.Int64Scalar):
                found[name, row] = str(value.as_py())
    return found


def command(world: World, name: str, capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code, which is 0, 2 or 3; then there is one line to say why."""
    capsys.readouterr()
    code = world.command(name, "-q")
    errors = capsys.readouterr().err.splitlines()
    assert code in (0, 2, 3), errors
    assert len(errors) == (code > 0), errors
    return code


def read_set_aside(folder: Path, kind: str) -> dict[tuple[str, int], str]:
    """File and row → why it was set aside."""
    found = {}
    for path in folder.glob(f"{kind}-*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            found |= {(name, int(row)): reason for name, row, _, reason, _ in csv.reader(file)}
    return found


def check_search(world: World, ids: set[str]) -> None:
    """Each item is found once, with what can be shown of it."""
    opened = open_release(world.store_url, cache_dir=world.folder / "cache")
    (hits,) = opened.search(np.ones((1, opened.release.dim), np.float32), k=len(ids))
    assert sorted(hit.item_id for hit in hits) == sorted(ids)
    print_hits(hits)
    json.dumps(hit_records(hits), allow_nan=False).encode()


# --- what is tried ---


@st.composite
def two_nights(draw: st.DrawFn, files: st.SearchStrategy[Files]) -> list[Files]:
    """The files of a night, and in some cases those of the next."""
    return [draw(files) for _ in range(draw(st.sampled_from([1, 1, 1, 2])))]


class Trial:
    """What the checks need."""

    def __init__(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.model, self.capsys = model, capsys

    def catalogue(self, catalogue: tuple[list[Files], str], folder: Path) -> None:
        nights, template = catalogue
        world = text_world(folder, self.model, template)
        for files in nights:
            check_night(world, write_files(folder / "rows", [*files, sound_file()]), self.capsys)

    def texts(self, files: Files, folder: Path) -> None:
        world = text_world(folder, self.model, TEMPLATES[1])
        check_night(world, write_files(folder / "rows", files), self.capsys)

    def vectors(self, nights: list[Files], folder: Path) -> None:
        world = world_of(folder, vectors={"path": f"{folder}/rows"})
        for files in nights:
            check_night(world, write_files(folder / "rows", [*files, sound_file(vector=SOUND_VECTORS)]), self.capsys)

    def npy(self, files: tuple[Written, bytes], folder: Path) -> None:
        file, data = files
        (folder / "v.npy").write_bytes(data)
        world = world_of(folder, vectors={"path": f"{folder}/v.npy", "ids": f"{folder}/rows"})
        check_night(world, write_files(folder / "rows", [file]), self.capsys)

    def logs(self, files: Files, folder: Path) -> None:
        """Rows are good ones, or counted as set aside."""
        num_rows, counted = write_files(folder / "log", files), list[int]()
        try:
            log = read_interactions(f"{folder}/log", None, "log", lambda count: counted.append(count) or count).rows
        except (ConfigError, DataError) as error:
            assert one_line(str(error))
            return
        assert set(counted) == {num_rows}
        assert log.num_rows <= num_rows
        assert all(row["query"].strip() and row["query_group"].strip() for row in log.to_pylist())
        assert np.isfinite(log["weight"].to_numpy()).all()
        clicked_pairs(log), reformulated_pairs(log)

    def beir(self, files: dict[str, bytes], folder: Path) -> None:
        """What is read of it is a catalogue without a bad row."""
        for name, data in files.items():
            Written(name, data, 0).write(folder / "beir")
        try:
            read = read_beir(folder / "beir")
        except (ConfigError, DataError) as error:
            assert one_line(str(error))
            return
        table = conform_table(read.catalogue, conform_schema(read.catalogue.schema, "corpus"))
        assert split_rows(table, ["document"])[1]["reason"].to_pylist() == []
        assert set(read.interactions["item_id"].to_pylist()) <= set(read.catalogue["item_id"].to_pylist())


TEMPLATES = ["{title}", "{title} — {creators} — {genres} — {description}", "{title}: {more}", "{title} {popularity}"]
one_file = parquet_files().map(lambda files: files[0])
TRIALS: dict[str, tuple[st.SearchStrategy[Any], int]] = {
    "catalogue": (st.tuples(two_nights(parquet_files()), st.sampled_from(TEMPLATES)), 30),
    "vectors": (two_nights(parquet_files(vector=vectors())), 25),
    "npy": (one_file.flatmap(lambda file: st.tuples(st.just(file), npy(file.num_rows))), 10),
    "texts": (csv_files() | json_files(), 20),
    "logs": (log_files(), 40),
    "beir": (beir_folders(), 40),
}
"""Name → what is tried, and how often in the short form."""


def try_many(
    check: Callable[[Any, Path], None], strategy: st.SearchStrategy[Any], count: int, start: int | None
) -> None:
    """`count` examples; always the same ones where they start from no seed."""

    @settings(
        max_examples=count,
        derandomize=start is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempt(value: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(value, Path(folder))

    try:
        (attempt if start is None else seed(start)(attempt))()
    except BaseException as error:
        error.add_note(f"seed {start}")  # printed, it would be lost: the checks take what is printed
        raise


@pytest.mark.parametrize("name", TRIALS)
def test_any_row_is_indexed_or_set_aside_or_refused_in_one_line(
    name: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy, num_examples = TRIALS[name]
    try_many(getattr(Trial(model, capsys), name), strategy, num_examples, None)


@pytest.mark.faults
@pytest.mark.parametrize("name", TRIALS)
def test_any_row_of_thousands_is_indexed_or_set_aside_or_refused_in_one_line(
    name: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy, num_examples = TRIALS[name]
    try_many(getattr(Trial(model, capsys), name), strategy, 25 * num_examples, random.randrange(2**32))


def test_a_failure_names_the_seed_that_repeats_it() -> None:
    def fail(value: int, folder: Path) -> None:
        raise AssertionError

    with pytest.raises(AssertionError) as error:
        try_many(fail, st.integers(), 1, 7)
    assert "seed 7" in error.value.__notes__
