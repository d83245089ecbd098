"""A Ray cluster with token authentication: `nightcrate submit` runs the night, strangers are turned away."""

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
from flow.worlds import NUM_EPISODES, NUM_SHOWS, NUM_TRACKS, ROOT, World, descendants, is_running, vector_world

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
    gcs, dashboard, client, agent = free_ports(4)
    arguments = f"""ray start --head --block --num-cpus 2 --node-ip-address 127.0.0.1 --port {gcs}
        --dashboard-host 127.0.0.1 --dashboard-port {dashboard} --ray-client-server-port {client}
        --dashboard-agent-listen-port {agent} --temp-dir {short_folder}/ray
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


def jobs_api(cluster: Cluster, token: str | None) -> int:
    """The status that the Jobs API answers; 0 while nothing listens."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def submit(cluster: Cluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """`nightcrate submit`, again while the head node's agent, which is the last to start, is not there yet."""
    deadline = time.monotonic() + START_S
    while True:
        done = cluster.command(
            sys.executable, "-m", "jobs", "submit", "--address", cluster.dashboard, *arguments, RAY_ADDRESS="nowhere"
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done


def test_without_the_token_the_jobs_api_answers_401(cluster: Cluster) -> None:
    assert jobs_api(cluster, None) == 401
    assert jobs_api(cluster, "0" * 64) in (401, 403)
    assert jobs_api(cluster, read_token(cluster)) == 200


def test_a_submitted_night_publishes_and_leaves_no_token_in_what_it_says(cluster: Cluster, fresh_world: World) -> None:
    path = fresh_world.write_config()
    done = submit(cluster, "nightly", "-c", str(path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (release,) = fresh_world.releases()
    assert release.num_items == NUM_TRACKS + NUM_SHOWS + NUM_EPISODES
    assert "release 1 is published" in done.stdout
    assert read_token(cluster) not in done.stdout + done.stderr + json.dumps(release.tools)


def test_a_submitted_night_ends_with_its_own_code_and_never_publishes_into_a_copy_of_ray(cluster: Cluster) -> None:
    """The store of this configuration is a folder of the one that is submitted."""
    done = submit(cluster, "nightly", "-c", "configs/demo.yaml")
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"nightcrate: store: file://\S+/build/demo/store is in Ray's copy of --working-dir", done.stdout)


def test_stages_run_one_by_one_on_the_artifacts_of_those_before(cluster: Cluster, tmp_path: Path) -> None:
    world = vector_world(tmp_path / "world")
    path = world.write_config()

    def run(stage: str) -> "subprocess.CompletedProcess[str]":
        return cluster.command(sys.executable, "-m", "jobs", stage, "-c", str(path), RAY_ADDRESS=cluster.address)

    refused = run("build")
    assert (refused.returncode, refused.stderr.count("nightcrate: ")) == (2, 1)
    assert "encode" in refused.stderr.splitlines()[-1]
    for stage in ("encode", "build", "validate", "publish"):
        assert not world.releases()
        done = run(stage)
        assert done.returncode == 0, done.stderr[-2000:]
    assert [release.number for release in world.releases()] == [1]
