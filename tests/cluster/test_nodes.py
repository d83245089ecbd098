"""One task on each node, and folders that are deleted with a job."""

from pathlib import Path
from typing import Any

import pytest
import ray
from flow.conftest import ray_environment, shared_ray, short_folder  # noqa: F401  fixtures

import cluster.nodes
from cluster.nodes import cores_of_nodes, is_deleted_with_job, on_each_node

pytestmark = pytest.mark.timeout(300)


def test_only_live_nodes_that_have_cpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head without CPUs runs no task, and a node that has left none any more."""
    resources: list[dict[str, Any]] = [{"memory": 1.0}, {"CPU": 8.0}, {"CPU": 4.0}, {"CPU": 2.0}]
    nodes = [{"Alive": number != 2, "Resources": each} for number, each in enumerate(resources)]
    monkeypatch.setattr(cluster.nodes.ray, "nodes", lambda: nodes)
    assert cores_of_nodes() == [8, 2]


def test_each_node_is_asked_though_all_its_cpus_are_busy(tmp_path: Path) -> None:
    @ray.remote
    def be_busy(path: Path) -> None:
        while not path.exists():
            pass

    busy = [be_busy.remote(tmp_path / "end") for _ in range(int(ray.cluster_resources()["CPU"]))]
    ((address, answer),) = on_each_node(lambda: ray.get_runtime_context().get_node_id())
    (tmp_path / "end").touch()
    ray.get(busy)
    (node,) = ray.nodes()
    assert (address, answer) == (node["NodeManagerAddress"], node["NodeID"])


@pytest.mark.parametrize(
    ("path", "is_deleted"),
    [
        ("/tmp/ray/session_2026/runtime_resources/working_dir_files/_ray_pkg_ab/build/store", True),
        ("/data/working_dir_files/store", False),
        ("/data/runtime_resources/store", False),
    ],
)
def test_the_copies_of_submitted_folders_are_recognised(path: str, is_deleted: bool) -> None:
    assert is_deleted_with_job(Path(path)) is is_deleted


def test_a_link_into_a_copy_is_recognised(tmp_path: Path) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "pkg"
    copy.mkdir(parents=True)
    (tmp_path / "link").symlink_to(copy)
    assert is_deleted_with_job(tmp_path / "link" / "store")
