"""Connecting to Ray: the cluster of a submitted job or a given address, else a fresh one on this machine."""

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's C++ lines would break into the progress bars
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; silences its warning

from typing import Any

import ray

from cluster.bare_machine import ensure_token, short_temp_folder

logger = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 10


class ClusterUnavailable(Exception):
    """The Ray cluster is unavailable, or lost work that retries did not recover."""

    exit_code = 6


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A connection to Ray while the block runs. `ray job submit` sets RAY_ADDRESS, which `address` overrides.

    Where neither gives one and the caller is connected already, that connection is used, and stays open.
    Raises ClusterUnavailable when the cluster cannot be reached.
    """
    address = cluster_address(address)
    with nullcontext() if address is None and ray.is_initialized() else connected(address):
        logger.info("ray: %s", ", ".join(f"{value:g} {name}" for name, value in sorted(cluster_resources().items())))
        yield


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            if address in (None, "local"):
                ensure_token()
                # "local", since without an address Ray joins whatever cluster this user has started on this machine.
                options: dict[str, Any] = {"address": "local", "include_dashboard": False}
                if folder := stack.enter_context(short_temp_folder()):
                    options["_temp_dir"] = folder
            else:
                options = {"address": address}
                if address != "auto":
                    check_reachable(address)
            with quiet_stderr(), own_sigterm():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterUnavailable(why_not_connected(address, first_line(error))) from error
        stack.callback(ray.shutdown)
        try:
            yield
        except BaseException as error:
            # Frames keep Ray Data's iterators until the error is handled. Their destructors would then start Ray again.
            traceback.clear_frames(error.__traceback__)
            raise


def why_not_connected(address: str | None, reason: str) -> str:
    if address in (None, "local"):
        return f"cannot start Ray on this machine: {reason}"
    return f"no Ray cluster at {address}: {reason}; start one, or unset ray.address for a local one"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, which is all that fits into another error's text."""
    return next(iter(str(error).strip().splitlines()), "")


def cluster_address(address: str | None) -> str | None:
    """Of a running cluster: the given one, else that of a submitted job."""
    return address or os.environ.get("RAY_ADDRESS")


def is_local(address: str | None) -> bool:
    """Whether `ray_session` starts a cluster of this machine alone, which will not grow."""
    return cluster_address(address) in (None, "local")


def check_reachable(address: str) -> None:
    """Raises OSError when nothing listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
        pass


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Ray's C++ core prints to file descriptor 2, bypassing Python's logging; failures are still raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keeps the caller's handler of SIGTERM, where there is one. Ray's would end the process before a lease is given
    back.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit:  # by Ray's handler
        handler(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs of the connected cluster."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {name: resources[name] for name in ("CPU", "GPU") if resources.get(name)}


def cluster_memory() -> int:
    """The bytes that tasks and actors of the connected cluster can reserve."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get("memory", 0))
