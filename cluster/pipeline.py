"""Items through tasks, a pool of actors, and tasks again: a streaming pipeline of Ray Data, with its back-pressure."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray

from cluster.resources import MALLOC
from cluster.streaming import as_rows, quiet_context, results_of

Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 8
"""Of a task, and of an actor. Ray Data's default is unlimited: what is killed again and again would hang the night."""


@dataclass(frozen=True)
class Pool:
    """What the actors of a pipeline get, and the tasks before and after them."""

    min_actors: int
    max_actors: int
    num_cpus: int
    """Of each actor."""
    num_gpus: float
    task_cpus: int
    """Of each task. Where the actors hold all CPUs it is none: a task that asked for one would wait forever."""
    max_tasks: int | None
    """Tasks of a kind that run at a time; None is as many as there are CPUs for."""
    actor_bytes: int | None = None
    """Memory that Ray sets aside for an actor; None: it counts CPUs and GPUs alone."""
    task_bytes: int | None = None


def through_actors(
    items: Sequence[Item],
    before: Callable[[Item], pa.Table],
    actor: Callable[..., Callable[[pa.Table], pa.Table]],
    arguments: tuple[Any, ...],
    after: Callable[[pa.Table], Result],
    pool: Pool,
    *,
    what: str,
) -> Iterator[Result]:
    """`after` of each item, as the tasks finish.

    `before` makes an item a table of one row, which is one block from there on. The class `actor`, which is
    constructed with `arguments`, turns it into another such table. What was lost with an actor or a node is done again.
    Raises what they raise, and ClusterUnavailable where Ray lost them again and again.
    """

    def before_actor(batch: pa.Table) -> pa.Table:
        return before(items[batch["item"][0].as_py()])

    def after_actor(row: pa.Table) -> pa.Table:
        return as_rows(after(row))

    most = min(pool.max_actors, len(items))
    arrow: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": 1, "zero_copy_batch": True}
    strategy = ray.data.TaskPoolStrategy(size=pool.max_tasks)
    needs = {"num_cpus": pool.task_cpus, "memory": pool.task_bytes}
    tasks = arrow | needs | {"compute": strategy, "max_retries": RETRIES}
    with quiet_context():
        # From items, not `range`: its read tasks would wait forever for the CPUs that the actors hold.
        numbers = ray.data.from_items(list(range(len(items))), override_num_blocks=len(items))
        made = numbers.map_batches(before_actor, **tasks).map_batches(
            actor,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(min_size=min(pool.min_actors, most), max_size=most),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            memory=pool.actor_bytes,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            runtime_env={"env_vars": MALLOC},
            **arrow,
        )
        results = made.map_batches(after_actor, **tasks)
        yield from results_of(results, what=what, num_tasks=len(items))
