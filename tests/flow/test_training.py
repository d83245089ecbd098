"""From search logs to an accepted encoder, and to the night that uses it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from flow.shared_ray import SharedRay
from flow.worlds import ROOT, World, write_rows
from training.worlds import make_items, make_log, tiny_model, tiny_training

from indexing import open_release
from indexing.encoder import encoder_digest
from indexing.release.manifest import release_key
from indexing.release.registry import newest_encoder
from indexing.store import open_store


def make_world(folder: Path, **training: Any) -> World:
    write_rows(folder / "catalogue" / "items.parquet", make_items())
    pq.write_table(make_log(range(32), num_items=320), folder / "train.parquet")
    pq.write_table(make_log(range(32, 56)), folder / "held-back.parquet")
    model = tiny_model(folder / "model")
    settings = tiny_training(steps=60, hard_share=0.3, **training)
    return World(
        folder,
        {
            "name": "training",
            "store": f"file://{folder}/store",
            "workspace": f"file://{folder}/workspace",
            "catalogue": {
                "path": f"{folder}/catalogue",
                "collections": {"tracks": {"item_types": ["track"]}},
                "text": {"default": "{title}"},
            },
            "encoder": {"model": str(model), "max_tokens": 32},
            "validation": {"min_self_match": 0.5, "min_shard_recall": 0.5},
            "index": {"recall_target": 0.5},
            "ray": {"encode_actors": 1},
            "training": {
                **asdict(settings),
                "interactions": f"{folder}/train.parquet",
                "negatives": {"per_query": 4, "first_rank": 2, "last_rank": 50},
            },
            "evaluation": {"interactions": f"{folder}/held-back.parquet", "max_loss": 0.5, "bm25": True},
        },
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shared_ray: SharedRay) -> World:
    """A night, then the weekly job of examples/: training on two workers, whose encoder is accepted, and a night."""
    world = make_world(tmp_path_factory.mktemp("trained"), num_workers=2)
    world.run()
    command = world.folder / "bin" / "nightcrate"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobs "$@"\n')
    command.chmod(0o755)
    train = world.write_config().rename(world.folder / "train.yaml")
    night = world.changed(encoder={"model": "latest"}).write_config()
    environment = {"PATH": f"{command.parent}:{os.environ['PATH']}", **shared_ray.driver_environment()}
    job = ["sh", "examples/weekly_training.sh", str(train), str(night)]
    done = subprocess.run(job, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return world


def artifact_of(world: World) -> Path:
    (folder,) = (world.folder / "workspace" / "training").iterdir()
    return folder


def test_a_better_encoder_is_accepted_with_what_it_was_accepted_for(trained: World) -> None:
    entry = newest_encoder(open_store(trained.store_url))
    assert entry is not None and (entry.number, entry.parent) == (1, None)
    assert entry.base_digest == encoder_digest(trained.folder / "model")
    rankers = entry.metrics["rankers"]
    assert rankers["new"]["exact"]["nDCG@10"] > 2 * rankers["incumbent"]["exact"]["nDCG@10"]
    assert rankers["new"]["exact"]["nDCG@10"] > 2 * rankers["bm25"]["exact"]["nDCG@10"]
    assert entry.metrics["differences"]["exact"]["nDCG@10"]["low"] > 0
    assert rankers["new"]["unseen in training"]["nDCG@10"] > 2 * rankers["incumbent"]["unseen in training"]["nDCG@10"]
    assert {"query kind title", "seen in training", "popularity head", "general"} <= rankers["new"].keys()


def test_a_training_leaves_its_curve_and_a_sample_of_its_negatives(trained: World) -> None:
    folder = artifact_of(trained)
    assert (folder / "curve.svg").read_text().startswith("<?xml")
    lines = (folder / "curve.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("step,loss,accuracy,pairs_per_s", 61)
    assert (folder / "data" / "negatives.csv").read_text().startswith("query,rank,score,item_id\n")


def test_the_next_night_of_latest_serves_the_accepted_encoder(trained: World) -> None:
    entry, release = newest_encoder(open_store(trained.store_url)), trained.releases()[-1]
    assert entry is not None and release.encoder is not None
    assert (release.number, release.encoder.digest) == (2, entry.digest)
    record = json.loads(max((trained.folder / "workspace" / "runs").glob("*.json")).read_text())
    encode = next(stage for stage in record["stages"] if stage["name"] == "encode")
    assert encode["num_rows"] == 0, "the evaluation has made the vectors, under the encoder's own fingerprint"
    hits = open_release(trained.store_url).search("calm music", k=5)
    assert sum("piano" in hit.metadata["title"] for hit in hits) >= 4


def test_training_again_finds_nothing_better_and_accepts_nothing(
    trained: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = trained.copied(tmp_path / "world")
    (world.folder / "store" / release_key(2)).unlink()  # as it was before the night with the new encoder
    assert world.command("train", "--json") == 4
    output = capsys.readouterr()
    assert "the new encoder was not accepted: nDCG@10 (exact) differs by +0.0000" in output.err
    found = json.loads(output.out)
    assert found["accepted"] is None
    assert f"not accepted: {'; '.join(found['reasons'])}; report: " in output.err
    assert found["report"]["num_queries"] > 0 and found["loss_curve"].endswith("curve.svg")
    entry = newest_encoder(open_store(world.store_url))
    assert entry is not None and entry.number == 1


def test_evaluate_takes_a_data_set_in_the_beir_layout(trained: World, tmp_path: Path) -> None:
    """The first encoder on the held-back queries, against the accepted one; nothing is accepted."""
    world, folder = trained.copied(tmp_path / "world"), tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": item["item_id"], "title": item["title"], "text": ""} for item in make_items()]
    log = make_log(range(32, 56)).to_pylist()
    queries = [{"_id": name, "text": name} for name in sorted({row["query"] for row in log})]
    for name, entries in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, entries)))
    lines = ["query-id\tcorpus-id\tscore", *(f"{row['query']}\t{row['item_id']}\t1" for row in log)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines))
    assert world.command("evaluate", "--beir", str(folder), "--out", str(tmp_path / "report.json")) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["rankers"]) == {"new", "incumbent", "bm25"}
    assert report["num_queries"] == len(queries)
    assert report["differences"]["incumbent"]["exact"]["nDCG@10"]["high"] < 0
    entry = newest_encoder(open_store(trained.store_url))
    assert entry is not None
    accepted = entry.metrics["rankers"]["new"]["exact"]["nDCG@10"]
    assert report["rankers"]["incumbent"]["exact"]["nDCG@10"] == pytest.approx(accepted, abs=0.02)


def test_groups_in_both_logs_are_refused(trained: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = trained.copied(tmp_path / "world")
    assert world.command("train", f"evaluation.interactions={world.folder}/train.parquet") == 3
    assert "expected other query groups than training.interactions, got 32 of the same" in capsys.readouterr().err


def test_more_workers_than_the_machine_has_cpus_are_refused(
    trained: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = trained.copied(tmp_path / "world")
    assert world.command("train", "training.num_workers=999") == 2
    assert "training.num_workers: 999 workers need 999 CPUs and 0 GPUs, this machine has" in capsys.readouterr().err


@pytest.mark.faults
def test_a_killed_training_resumes_from_its_checkpoint_with_the_same_curve(trained: World, tmp_path: Path) -> None:
    """SIGKILL of a worker, which Ray restarts: the curve is that of an undisturbed training."""
    world = make_world(tmp_path / "world", num_workers=2, checkpoint_every=10)
    world.run()
    run = world.start("train")
    checkpoints = world.folder / "workspace" / "training"
    deadline = time.monotonic() + 90
    while not list(checkpoints.glob("*/checkpoints/00000020.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    victim = next(
        pid for pid in children_of(run.pid) if "train_worker" in name_of(pid) or "RayTrainWorker" in name_of(pid)
    )
    os.kill(victim, signal.SIGKILL)
    output = run.communicate(timeout=150)
    assert run.returncode == 0, output
    found, expected = (read_losses(each) for each in (world, trained))
    assert len(found) == len(expected) == 60
    assert found == pytest.approx(expected, rel=0.02)


def read_losses(world: World) -> list[float]:
    lines = (artifact_of(world) / "curve.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """All processes below this one."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (below := parents.get(waiting.pop(), []))
        found += below
    return found
