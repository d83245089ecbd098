"""How this project runs Ray Data."""

import logging
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from ray.data import DataContext, Dataset
from ray.data._internal.execution.operators.shuffle_operators import shuffle_reduce_operator
from ray.data._internal.planner import plan_all_to_all_op
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from cluster.fanout import raise_failures

# Ray Data gives the map and the reduce tasks of a shuffle an environment of their own, and so worker processes of their
# own: on a small machine each stage then ends those of the one before and starts others, 3.5 s of a night (measured).
plan_all_to_all_op._SHUFFLE_MAP_RUNTIME_ENV = {}  # type: ignore[attr-defined]  # which imports it by name
shuffle_reduce_operator._SHUFFLE_REDUCE_RUNTIME_ENV = {"env_vars": {}}


@contextmanager
def quiet_context(**settings: Any) -> Iterator[None]:
    """Datasets that are made and read in this block show nothing of their own, and raise what their functions raise."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    for name, value in settings.items():
        setattr(context, name, value)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised; the rest would break the bars
    with DataContext.current(context), warnings.catch_warnings():
        # Of Ray 2.60: restarts of actors are limited by arguments that have no replacement yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def as_rows(*results: Any) -> pa.Table:
    """What the last tasks of a dataset return for these results: a row for each."""
    return pa.table({"result": pa.array([pickle.dumps(result) for result in results], pa.binary())})


def results_of(dataset: Dataset, *, what: str, num_tasks: int) -> Iterator[Any]:
    """The results that went into `as_rows`, as they come. Raises as `fan_out` does."""
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])
    except RayError as error:
        raise_failures([error], what=what, num_tasks=num_tasks)
