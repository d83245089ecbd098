"""A Ray cluster of its own for the tests, in processes that can be found and killed one by one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from flow.worlds import descendants, is_running

START_S = 60.0
STOP_S = 20.0


class RayHead:
    """`ray start --head` with two CPUs, from `with` to its end. What it writes goes to `log`."""

    def __init__(self, log: Path, environment: dict[str, str], *, with_dashboard: bool = False) -> None:
        self._log = log
        folder = Path(sys.executable).parent
        self.environment = {
            **environment,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._with_dashboard = with_dashboard

    def __enter__(self) -> RayHead:
        port, dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard_port}"
        options = f"""--head --block --node-ip-address=127.0.0.1 --port={port} --num-cpus=2 --num-gpus=0
            --object-store-memory=100000000 --include-dashboard={self._with_dashboard}
            --dashboard-host=127.0.0.1 --dashboard-port={dashboard_port}
            --dashboard-agent-listen-port={free_port()} --ray-client-server-port={free_port()}"""
        # Ray's own job supervisor looks for "the latest cluster of this machine" unless it is given one.
        address = {"RAY_ADDRESS": self.address} if self._with_dashboard else {}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["ray", "start", *options.split()],
                env={**os.environ, **self.environment, **address},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in (text := self._log.read_text()):
            assert self._process.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_all({self._process.pid, *descendants(self._process.pid)})
        self._process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def kill_all(pids: Iterable[int]) -> int:
    """SIGKILL to each that still exists; returns how many."""
    num_killed = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            num_killed += 1
    return num_killed


def wait_until_gone(pids: Iterable[int]) -> None:
    deadline = time.monotonic() + STOP_S
    left = set(pids)
    while left := {pid for pid in left if is_running(pid)}:
        assert time.monotonic() < deadline, f"expected these processes to end: {left}"
        time.sleep(0.02)
