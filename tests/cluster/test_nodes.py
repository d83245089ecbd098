"""One task on each node, and folders that are deleted with a job."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from flow.worlds import RAY_TOKEN

from cluster.nodes import is_deleted_with_job, on_each_node
from cluster.session import ray_session

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", RAY_TOKEN)  # else Ray writes one into the user's home
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(None):
            yield


def test_each_node_is_asked_though_all_its_cpus_are_busy(session: None, tmp_path: Path) -> None:
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
