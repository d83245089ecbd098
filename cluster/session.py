"""Connecting to Ray: the cluster of a submitted job or a given address, else a fresh one on this machine."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; silences its warning

import ray

logger = logging.getLogger(__name__)


class ClusterUnavailable(Exception):
    """The Ray cluster is out of reach, or lost work that retries did not bring back."""

    exit_code = 6


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A connection to Ray for the length of the block. `ray job submit` sets RAY_ADDRESS, which `address` overrides.

    Raises ClusterUnavailable when the cluster cannot be reached.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    options = {"address": address} if address else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ClusterUnavailable(
            f"no Ray cluster at {address or 'this machine'}: {first_line}; start one, or unset ray.address for a local one"
        ) from error
    try:
        logger.info("ray: %s", ", ".join(f"{value:g} {name}" for name, value in sorted(cluster_resources().items())))
        yield
    finally:
        ray.shutdown()


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs of the connected cluster."""
    resources = ray.cluster_resources()
    return {name: resources[name] for name in ("CPU", "GPU") if resources.get(name)}
