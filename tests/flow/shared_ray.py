"""One Ray for all runs of the test process, and for the drivers that it starts: a Ray for each would cost seconds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from flow.worlds import descendants

from cluster.session import ray_session


@dataclass(frozen=True)
class SharedRay:
    address: str

    def driver_environment(self) -> dict[str, str]:
        """What leads a process to this cluster."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token"}

    def busy_workers(self, name: str = "") -> list[int]:
        """The processes that run a task or actor whose name contains `name`."""
        titles = {pid: command_line(pid) for pid in descendants(os.getpid())}
        return [
            pid
            for pid, title in titles.items()
            if title.startswith("ray::") and name in title and "IDLE" not in title and "Agent" not in title
        ]


@contextmanager
def share_ray() -> Iterator[SharedRay]:
    """Connects this process; what is in its environment now is in that of all workers."""
    with ray_session(None):
        yield SharedRay(ray.get_runtime_context().gcs_address)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
