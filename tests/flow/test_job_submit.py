"""A Ray cluster with token authentication: `ray job submit` runs the night, strangers are turned away."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from flow.worlds import NUM_EPISODES, NUM_SHOWS, NUM_TRACKS, ROOT, World, descendants, is_running

pytestmark = pytest.mark.timeout(600)
BIN = Path(sys.executable).parent
START_S = 120


@dataclass(frozen=True)
class Cluster:
    """A head node on loopback, and the environment of those who hold its token."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def command(self, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            arguments, env={**self.environment, **environment}, cwd=ROOT, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def cluster(short_folder: Path) -> Iterator[Cluster]:
    home = short_folder / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "PATH": f"{BIN}:{os.environ['PATH']}"}
    del environment["RAY_AUTH_TOKEN_PATH"]
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    gcs, dashboard, client = free_ports(3)
    arguments = f"""ray start --head --block --num-cpus 2 --node-ip-address 127.0.0.1 --port {gcs} --temp-dir {short_folder}/ray
        --dashboard-host 127.0.0.1 --dashboard-port {dashboard} --ray-client-server-port {client}
        --object-store-memory 200000000 --disable-usage-stats"""
    with (short_folder / "head.log").open("wb") as log:
        head = subprocess.Popen(arguments.split(), env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        made = Cluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
        wait_until_up(made, head, short_folder / "head.log")
        yield made
    finally:
        stop(head)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def wait_until_up(cluster: Cluster, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while jobs_api(cluster, read_token(cluster)) != 200:
        assert head.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


def stop(head: "subprocess.Popen[bytes]") -> None:
    """Ends the head node and all below it; `ray stop` would end every cluster of this machine."""
    children = descendants(head.pid)
    head.send_signal(signal.SIGTERM)
    head.wait(START_S)
    deadline = time.monotonic() + 20
    while (left := [pid for pid in children if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def read_token(cluster: Cluster) -> str:
    return Path(cluster.environment["HOME"], ".ray", "auth_token").read_text().strip()


def jobs_api(cluster: Cluster, token: str | None) -> int:
    """The status that the Jobs API answers; 0 while nothing listens."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers), timeout=10
        ) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_without_the_token_the_jobs_api_answers_401(cluster: Cluster) -> None:
    assert jobs_api(cluster, None) == 401
    assert jobs_api(cluster, "0" * 64) in (401, 403)
    assert jobs_api(cluster, read_token(cluster)) == 200


def test_a_submitted_night_publishes_and_leaves_no_token_in_what_it_says(cluster: Cluster, fresh_world: World) -> None:
    path = fresh_world.write_config()
    job = f"--address {cluster.dashboard} --working-dir . -- python -m jobs nightly -c {path} ray.encode_actors=1"
    done = cluster.command("ray", "job", "submit", *job.split())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (release,) = fresh_world.releases()
    assert release.num_items == NUM_TRACKS + NUM_SHOWS + NUM_EPISODES
    assert "release 1 is published" in done.stdout
    assert read_token(cluster) not in done.stdout + done.stderr + json.dumps(release.tools)


def test_a_submitted_night_that_fails_fails_the_job_with_its_one_line(cluster: Cluster, fresh_world: World) -> None:
    path = fresh_world.write_config()
    job = f"--address {cluster.dashboard} --working-dir . -- python -m jobs nightly -c {path} index.m=5"
    done = cluster.command("ray", "job", "submit", *job.split())
    assert done.returncode != 0
    assert "nightcrate: " in done.stdout and "unknown key index.m" in done.stdout
    assert not fresh_world.releases()


def test_stages_run_one_by_one_on_the_artifacts_of_those_before(cluster: Cluster, fresh_world: World) -> None:
    path = fresh_world.write_config()

    def run(stage: str) -> "subprocess.CompletedProcess[str]":
        return cluster.command(sys.executable, "-m", "jobs", stage, "-c", str(path), RAY_ADDRESS=cluster.address)

    refused = run("build")
    assert (refused.returncode, refused.stderr.count("nightcrate: ")) == (2, 1)
    assert "encode" in refused.stderr.splitlines()[-1]
    for stage in ("encode", "build", "validate", "publish"):
        assert not fresh_world.releases()
        done = run(stage)
        assert done.returncode == 0, done.stderr[-2000:]
    assert [release.number for release in fresh_world.releases()] == [1]
