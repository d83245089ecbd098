"""Tasks, actors, tasks: every item passes all three, whatever dies on the way."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from flow.conftest import ray_environment, shared_ray, short_folder  # noqa: F401  fixtures

from cluster.pipeline import Pool, through_actors
from cluster.session import ClusterUnavailable
from indexing.errors import DataError

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("shared_ray")]
Steps = tuple[Callable[[int], pa.Table], Callable[[], Callable[[pa.Table], pa.Table]], Callable[[pa.Table], int]]
Hit = Callable[[str], None]


@pytest.fixture
def steps() -> Callable[[Hit], Steps]:
    """Add 10, add 100, take out; each calls `hit` with its name. Not of this module, which workers cannot import."""

    def steps_(hit: Hit) -> Steps:
        def before(number: int) -> pa.Table:
            hit("before")
            return pa.table({"value": [number + 10]})

        class Adding:
            def __call__(self, row: pa.Table) -> pa.Table:
                hit("actor")
                return pa.table({"value": [row["value"][0].as_py() + 100]})

        def after(row: pa.Table) -> int:
            hit("after")
            return int(row["value"][0].as_py())

        return before, Adding, after

    return steps_


@pytest.fixture
def pool() -> Pool:
    """An actor that leaves a CPU, where there are two: that of a failed test keeps its own for some seconds."""
    return Pool(min_actors=1, max_actors=1, num_cpus=1, num_gpus=0, task_cpus=0, max_tasks=1)


@pytest.mark.faults  # it needs all CPUs: an actor that an earlier test has left behind in the same Ray would hold some
def test_what_a_killed_worker_had_is_done_again_also_beside_an_actor_that_holds_all_cpus(
    steps: Callable[[Hit], Steps], pool: Pool, tmp_path: Path
) -> None:
    def die_once(name: str) -> None:
        marker = tmp_path / name
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    before, actor, after = steps(die_once)
    pool = replace(pool, num_cpus=int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    assert sorted(through_actors(range(5), before, actor, (), after, pool, what="test")) == list(range(110, 115))
    assert {path.name for path in tmp_path.iterdir()} == {"before", "actor", "after"}


@pytest.mark.faults
@pytest.mark.parametrize("step", ["before", "actor", "after"])
def test_workers_that_always_die_end_it(steps: Callable[[Hit], Steps], pool: Pool, step: str) -> None:
    def die(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    before, actor, after = steps(die)
    with pytest.raises(ClusterUnavailable, match="Ray lost a test task and retries did not help"):
        list(through_actors(range(1), before, actor, (), after, pool, what="test"))


@pytest.mark.parametrize("step", ["before", "actor", "after"])
def test_an_expected_error_of_any_step_is_raised_as_what_it_is(
    steps: Callable[[Hit], Steps], pool: Pool, step: str
) -> None:
    def fail(name: str) -> None:
        if name == step:
            raise DataError(f"expected rows, got none in {name}")

    before, actor, after = steps(fail)
    with pytest.raises(DataError, match=f"expected rows, got none in {step}"):
        list(through_actors(range(2), before, actor, (), after, pool, what="test"))


def test_what_a_task_waited_for_in_vain_is_the_error(steps: Callable[[Hit], Steps], pool: Pool) -> None:
    @ray.remote(num_cpus=0)
    def fail() -> None:
        raise DataError("expected a model, got none")

    failing = fail.remote()
    before, actor, after = steps(lambda name: ray.get(failing) if name == "before" else None)
    with pytest.raises(DataError, match="expected a model, got none"):
        list(through_actors(range(2), before, actor, (), after, pool, what="test"))
