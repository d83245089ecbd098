"""Many Ray tasks: bounded, every result once, and every failure raised."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from flow.conftest import ray_environment, shared_ray, short_folder  # noqa: F401  fixtures
from ray.exceptions import WorkerCrashedError

from cluster.fanout import fan_out, peak_memory_bytes, raise_failures
from cluster.session import ClusterUnavailable, cluster_resources, ray_session
from indexing.errors import DataError, StoreUnavailable

pytestmark = pytest.mark.timeout(300)


@ray.remote
def double(number: int) -> int:
    return 2 * number


def test_a_connection_of_the_caller_is_used_and_stays_open() -> None:
    job = ray.get_runtime_context().get_job_id()
    with ray_session(None):
        assert ray.get_runtime_context().get_job_id() == job
    assert ray.get(double.remote(3)) == 6


def test_every_item_comes_back_once_with_its_result() -> None:
    assert sorted(fan_out(double.remote, range(12), what="double")) == [(number, 2 * number) for number in range(12)]


def test_no_items_are_no_work() -> None:
    assert list(fan_out(double.remote, [], what="double")) == []


def test_no_more_than_the_limit_is_under_way() -> None:
    submitted: list[int] = []
    yielded = 0

    def submit(number: int) -> ray.ObjectRef:
        submitted.append(number)
        assert len(submitted) - yielded <= 3
        return double.remote(number)

    for _ in fan_out(submit, range(10), what="double", max_in_flight=3):
        yielded += 1
    assert submitted == list(range(10))


def test_all_failures_are_raised_and_running_tasks_are_awaited() -> None:
    @ray.remote
    def fail(number: int) -> int:
        if number in (1, 2):
            raise DataError(f"part {number} is bad")
        return number

    found = []
    with pytest.raises(DataError, match=r"^2 of 3 check tasks failed, the first: part [12] is bad$") as caught:
        for item, _ in fan_out(fail.remote, range(3), what="check", max_in_flight=3):
            found.append(item)
    assert caught.value.exit_code == 3
    assert found == [0]


def test_nothing_is_started_after_a_failure() -> None:
    @ray.remote
    def fail(number: int) -> int:
        raise DataError(f"part {number} is bad")

    submitted = []

    def submit(number: int) -> ray.ObjectRef:
        submitted.append(number)
        return fail.remote(number)

    with pytest.raises(DataError, match="part"):
        list(fan_out(submit, range(50), what="check", max_in_flight=2))
    assert len(submitted) == 2


def test_a_bug_comes_before_an_expected_error() -> None:
    @ray.remote
    def fail(number: int) -> None:
        raise [DataError("bad data"), KeyError("bug")][number]

    with pytest.raises(KeyError, match="bug"):
        list(fan_out(fail.remote, range(2), what="check"))


def test_a_task_whose_worker_dies_again_and_again_is_a_cluster_that_cannot_be_used() -> None:
    @ray.remote(max_retries=1)
    def die() -> None:
        os._exit(1)

    with pytest.raises(ClusterUnavailable, match="Ray lost a build task and retries did not help") as caught:
        list(fan_out(lambda _: die.remote(), [0], what="build"))
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


def test_a_task_whose_worker_dies_once_is_done_again(tmp_path: Path) -> None:
    marker = tmp_path / "died"

    @ray.remote
    def die_once() -> str:
        if not marker.exists():
            marker.touch()
            os._exit(1)
        return "done"

    assert list(fan_out(lambda _: die_once.remote(), [0], what="build")) == [(0, "done")]


@pytest.mark.parametrize(
    ("failures", "kind", "text"),
    [
        ([DataError("a")], DataError, "a"),
        ([StoreUnavailable("a"), DataError("b")], StoreUnavailable, "2 of 5 x tasks failed, the first: a"),
        ([DataError("a\n\nRay adds more")], DataError, "a"),
        ([WorkerCrashedError()], ClusterUnavailable, "Ray lost a x task and retries did not help: The worker died"),
    ],
)
def test_failures_become_one_error_of_one_line(failures: list[Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        raise_failures(failures, what="x", num_tasks=5)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is failures[0]


def test_resources_and_memory_are_numbers_of_this_machine() -> None:
    assert cluster_resources()["CPU"] >= 1
    before = peak_memory_bytes()
    assert len(bytearray(50_000_000)) and peak_memory_bytes() >= max(before, 50_000_000)


def test_a_slow_task_does_not_hold_up_the_others(tmp_path: Path) -> None:
    marker = tmp_path / "others are done"

    @ray.remote(num_cpus=0)
    def work(is_slow: bool) -> None:
        while is_slow and not marker.exists():
            time.sleep(0.05)

    for is_slow, _ in fan_out(work.remote, [True, False], what="work"):
        assert is_slow == marker.exists()
        marker.touch()
