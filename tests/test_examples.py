"""Every file of examples/ does what its first lines say."""

import importlib.util
import io
import json
import os
import stat
import subprocess
import sys
import threading
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flow.conftest import ray_environment, shared_ray, short_folder, tiny_model  # noqa: F401 - fixtures
from flow.worlds import publish_without_ray

from indexing import LiveRelease, open_release
from jobs.__main__ import main

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def nightcrate_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples start it as a process: seconds to import torch and to start Ray, which are not what is tested."""
    run_process = subprocess.run

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[Any]":
        if command[:3] != [sys.executable, "-m", "jobs"]:
            return run_process(command, **options)
        hidden = redirect_stdout(io.StringIO()) if options.get("stdout") == subprocess.DEVNULL else nullcontext()
        with hidden:
            done = subprocess.CompletedProcess(command, main(command[3:]))
        if options.get("check"):
            done.check_returncode()
        return done

    monkeypatch.setattr(subprocess, "run", run)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_listed_and_run_here() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    listed = (EXAMPLES / "README.md").read_text()
    run_here = Path(__file__).read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in listed] == []
    assert [
        name for name in sorted(names) if f'load("{name[:-3]}")' not in run_here and f'"{name}"' not in run_here
    ] == []


def test_a_csv_becomes_a_release(tmp_path: Path, tiny_model: Path) -> None:  # noqa: F811
    lines = [f"{number},balark {number} {'momint' * (number % 7)},An Artist;Another,pop" for number in range(40)]
    (tmp_path / "songs.csv").write_text("\n".join(["id,title,artists,genre", *lines]))
    target = tmp_path / "own"
    overrides = [f"encoder.model={tiny_model}", "encoder.max_tokens=64", "ray.encode_actors=1"]
    assert load("own_catalogue").main(str(tmp_path / "songs.csv"), str(target), *overrides) == 0
    release = open_release(f"file://{target}/store", cache_dir=tmp_path / "cache")
    assert release.release.num_items == 40
    assert release.search("balark momint", k=1)[0].metadata["creators"] == ["An Artist", "Another"]


def test_own_vectors_become_a_release(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32))
    pq.write_table(pa.table({"item_id": [f"item-{row}" for row in range(60)]}), tmp_path / "ids.parquet")
    load("own_vectors").main(str(tmp_path / "v.npy"), str(tmp_path / "ids.parquet"), str(tmp_path / "out"))
    assert "1.000 item-0\n" in capfd.readouterr().out


def test_the_service_answers_and_refuses(tmp_path: Path, tiny_model: Path) -> None:  # noqa: F811
    live = LiveRelease(publish_without_ray(tmp_path, tiny_model), cache_dir=tmp_path / "cache")
    with load("search_service").make_server(live, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/search"
        with urlopen(f"{url}?q=balark+momint&k=3") as response:
            hits = json.load(response)
        assert [hit["item_id"] for hit in hits] == [hit.item_id for hit in live.search("balark momint", k=3)]
        for wrong in ("q=", "q=balark&k=x", "q=balark&k=100000"):
            with pytest.raises(HTTPError) as caught:
                urlopen(f"{url}?{wrong}")
            assert caught.value.code == 400
        server.shutdown()


@pytest.mark.parametrize(("train_ends_with", "ends_with", "nights"), [(0, 0, 1), (4, 0, 1), (3, 1, 0)])
def test_the_weekly_job_publishes_unless_training_itself_fails(
    tmp_path: Path, train_ends_with: int, ends_with: int, nights: int
) -> None:
    """With a command in the place of nightcrate that notes its arguments; flow/test_training.py has the real one."""
    command = tmp_path / "nightcrate"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ntest "$1" != train || exit {train_ends_with}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = ["sh", str(EXAMPLES / "weekly_training.sh"), "train.yaml", "night.yaml"]
    done = subprocess.run(job, env=environment, check=False)
    assert done.returncode == ends_with
    expected = ["train -c train.yaml", "nightly -c night.yaml"][: 1 + nights]
    assert (tmp_path / "calls").read_text().splitlines() == expected


def test_two_encoders_are_compared(tmp_path: Path, tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    texts = [f"balark {word}" for word in ("momint", "cerose", "nustorm", "diwave")]
    (tmp_path / "qrels").mkdir()
    documents = [{"_id": f"d{number}", "title": text, "text": ""} for number, text in enumerate(texts)]
    queries = [{"_id": f"q{number}", "text": text} for number, text in enumerate(texts)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judged = ["query-id\tcorpus-id\tscore", *(f"q{number}\td{number}\t1" for number in range(len(texts)))]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(judged))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"name: compare\nstore: file://{tmp_path}/store\nworkspace: file://{tmp_path}/workspace\n"
        "catalogue: {path: replaced-by-beir, collections: {documents: {item_types: [document]}}}\n"
        "encoder: {max_tokens: 64}\nray: {encode_actors: 1}\nevaluation: {bm25: false}\n"
    )
    load("compare_encoders").main(str(config), str(tmp_path), str(tiny_model))
    output = capfd.readouterr().out
    assert output.startswith(str(tiny_model)) and "nDCG@10 1.000" in output, output
