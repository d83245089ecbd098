"""Nights in this process and without Ray: each task runs where it is submitted, one after the other."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from ray.remote_function import RemoteFunction

from cluster.fanout import raise_failures
from cluster.shuffle import BUCKET

MODULES = (
    *("jobs.stages.encode", "jobs.stages.build", "jobs.stages.publish", "jobs.plan", "jobs.inputs.items"),
    *("jobs.quality.inspect", "jobs.quality.shard_search", "jobs.quality.full_search", "jobs.quality.drift"),
)


class InlineTask:
    """A remote function that is called at once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function

    def options(self, **_: Any) -> "InlineTask":
        return self


def fan_out(submit: Callable[[Any], Any], items: Sequence[Any], *, what: str, **_: Any) -> Iterator[tuple[Any, Any]]:
    """Failures are raised as those of Ray's tasks are."""
    for item in items:
        try:
            result = submit(item)
        except Exception as error:
            raise_failures([error], what=what, num_tasks=len(items))
        yield item, result


def shuffle(
    items: Sequence[Any],
    read: Callable[[Any], Iterable[pa.Table]],
    write: Callable[[pa.Table], Any],
    num_buckets: int,
    *,
    what: str,
) -> Iterator[Any]:
    try:
        rows = pa.concat_tables([table for item in items for table in read(item)])
        for number in sorted(set(rows[BUCKET].to_pylist())):
            yield write(rows.filter(pc.field(BUCKET) == number))
    except Exception as error:
        raise_failures([error], what=what, num_tasks=len(items))


def through_actors(
    items: Sequence[Any],
    before: Callable[[Any], pa.Table],
    actor: Callable[..., Callable[[pa.Table], pa.Table]],
    arguments: tuple[Any, ...],
    after: Callable[[pa.Table], Any],
    pool: Any,
    *,
    what: str,
) -> Iterator[Any]:
    encode = actor(*arguments)
    return (after(encode(before(item))) for item in items)


def run_inline(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone, the stages need no Ray, and graphs are loaded without a process of their own."""
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in list(vars(module).items()):
            if isinstance(value, RemoteFunction):
                patch.setattr(module, attribute, InlineTask(value._function))
        patch.setattr(module, "fan_out", fan_out, raising=False)
    patch.setattr("ray.put", lambda value: value)
    patch.setattr("ray.get", lambda value: value)
    for session in ("jobs.nightly.ray_session", "jobs.plan.ray_session"):
        patch.setattr(session, lambda address: nullcontext())
    patch.setattr("jobs.plan.cluster_resources", lambda: {"CPU": 1.0})
    patch.setattr("jobs.inputs.shared.cpu_nodes", list)
    patch.setattr("jobs.stages.build.cores_of_nodes", lambda: [1])
    patch.setattr("jobs.stages.prepare.shuffle", shuffle)
    patch.setattr("jobs.stages.encode.cluster_resources", lambda: {"CPU": 1.0})
    patch.setattr("jobs.stages.encode.through_actors", through_actors)
    patch.setattr("jobs.quality.inspect.check_loads", lambda *_: None)
