"""The nodes of a cluster: their CPUs, one small task on each, and what Ray deletes there with a job."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.fanout import fan_out

Result = TypeVar("Result")
JOB_COPIES = ("runtime_resources", "working_dir_files")
"""Where Ray's session folder keeps its copies of the folders that jobs are submitted with."""


def is_deleted_with_job(path: Path) -> bool:
    """Whether the path is in the copy of --working-dir that a submitted job runs in."""
    parts = path.resolve().parts
    return any(parts[start : start + 2] == JOB_COPIES for start in range(len(parts)))


def cpu_nodes() -> list[dict[str, Any]]:
    """The live nodes that have CPUs, as `ray.nodes` describes them."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]


def cores_of_nodes() -> list[int]:
    """CPUs of each live node that has any."""
    return [int(node["Resources"]["CPU"]) for node in cpu_nodes()]


def on_each_node(act: Callable[[], Result]) -> list[tuple[str, Result]]:
    """(address, what `act` returns there) of each node that has CPUs, busy ones too."""

    def submit(node: dict[str, Any]) -> Any:
        # Soft: where the node has just left, another answers in its place.
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        return call.options(scheduling_strategy=there).remote(act)

    nodes = cpu_nodes()
    found = fan_out(submit, nodes, what="node check", max_in_flight=len(nodes))
    return sorted((str(node["NodeManagerAddress"]), result) for node, result in found)


@ray.remote(num_cpus=0)
def call(act: Callable[[], Any]) -> Any:
    return act()
