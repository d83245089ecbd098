"""Many Ray tasks, a bounded number at a time; every failure is raised, none is dropped."""

import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.session import ClusterUnavailable, cluster_resources, first_line

Item = TypeVar("Item")
Task: TypeAlias = "ray.ObjectRef[Any]"


def fan_out(
    submit: Callable[[Item], Task], items: Sequence[Item], *, what: str, max_in_flight: int | None = None
) -> Iterator[tuple[Item, Any]]:
    """`submit` for each item, in order; yields (item, result) as they arrive, in any order.

    After the first failure nothing more is started, running tasks are awaited, and then all failures are raised as one.
    Raises an error of the same class when the tasks raised an expected error (one with an `exit_code`),
    ClusterUnavailable when Ray lost them, else what was raised.
    """
    limit = max_in_flight or max(2, 2 * int(cluster_resources().get("CPU", 1)))
    waiting = iter(items)
    running: dict[Task, Item] = {}
    failures: list[BaseException] = []
    while True:
        while not failures and len(running) < limit and (following := next(waiting, None)) is not None:
            running[submit(following)] = following
        if not running:
            break
        (ready,), _ = ray.wait(list(running), num_returns=1)
        item = running.pop(ready)
        try:
            result = ray.get(ready)
        except RayError as error:
            failures.append(error)
        else:
            yield item, result
    if failures:
        raise_failures(failures, what=what, num_tasks=len(items))


def raise_failures(failures: Sequence[BaseException], *, what: str, num_tasks: int) -> NoReturn:
    """Raises one error that stands for all `failures` of the tasks called `what`: a bug before an expected error."""
    causes = [_cause(failure) for failure in failures]
    first = min(causes, key=lambda cause: hasattr(cause, "exit_code"))
    text = f"{len(causes)} of {num_tasks} {what} tasks failed, the first: " if len(causes) > 1 else ""
    reason = first_line(first)  # Ray Data appends lines of its own
    if isinstance(first, RayError):
        raise ClusterUnavailable(f"{text}Ray lost a {what} task and retries did not help: {reason}") from first
    if hasattr(first, "exit_code"):
        raise type(first)(f"{text}{reason}") from first
    raise first


def _cause(failure: BaseException) -> BaseException:
    """What the task raised; perhaps because another task that it waited for had raised it."""
    while isinstance(failure, RayTaskError) and failure.cause is not None:
        failure = failure.cause
    return failure


def peak_memory_bytes() -> int:
    """The peak memory of this process so far (resident set, bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
