"""Nights in this process and without Ray: each task runs where it is submitted, one after the other."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from ray.remote_function import RemoteFunction

from cluster.fanout import raise_failures
from jobs.stages.encode import ChunkEncoder, EncodeSettings

MODULES = (
    *("jobs.stages.prepare", "jobs.stages.build", "jobs.stages.publish", "jobs.plan", "jobs.inputs.items"),
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


def run_actors(settings: EncodeSettings, *_: Any) -> Iterator[dict[str, int]]:
    encoder = ChunkEncoder(settings)
    return (encoder.encode_chunk(chunk) for chunk in range(settings.num_chunks))


def run_inline(patch: pytest.MonkeyPatch) -> None:
    """Until `patch` is undone, the stages need no Ray, and graphs are loaded without a process of their own."""
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in list(vars(module).items()):
            if isinstance(value, RemoteFunction):
                patch.setattr(module, attribute, InlineTask(value._function))
        patch.setattr(module, "fan_out", fan_out)
    patch.setattr("ray.put", lambda value: value)
    patch.setattr("ray.get", lambda value: value)
    for session in ("jobs.nightly.ray_session", "jobs.plan.ray_session"):
        patch.setattr(session, lambda address: nullcontext())
    patch.setattr("jobs.plan.cluster_resources", lambda: {"CPU": 1.0})
    patch.setattr("jobs.inputs.shared.cpu_nodes", list)
    patch.setattr("jobs.stages.build.cores_of_nodes", lambda: [1])
    patch.setattr("jobs.stages.encode.actor_pool", lambda settings: (1, 1, 0.0))
    patch.setattr("jobs.stages.encode.run_actors", run_actors)
    patch.setattr("jobs.quality.inspect.check_loads", lambda *_: None)
