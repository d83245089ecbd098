"""Rows of many tasks, each to its bucket, by Ray Data's own shuffle with its spilling and its retries."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import ray

from cluster.streaming import as_rows, quiet_context, results_of

Item = TypeVar("Item")
Result = TypeVar("Result")
BUCKET = "nightcrate:bucket"
"""int32: the column that says which bucket a row goes to."""


def shuffle(
    items: Sequence[Item],
    read: Callable[[Item], Iterable[pa.Table]],
    write: Callable[[pa.Table], Result],
    num_buckets: int,
    *,
    what: str,
) -> Iterator[Result]:
    """`write` of each bucket that has rows, as the tasks finish.

    `read` gives the rows of an item, with the column BUCKET, from 0 to `num_buckets`; all tables have one schema.
    `write` gets all rows of one bucket, in an order that differs from run to run. Both run in Ray's workers, perhaps
    more than once. Raises what they raise, and ClusterUnavailable where Ray lost them again and again.
    """

    def read_item(batch: pa.Table) -> Iterator[pa.Table]:
        yield from read(items[batch["item"][0].as_py()])

    def write_bucket(rows: pa.Table) -> pa.Table:
        return as_rows(write(rows)) if rows.num_rows else as_rows()

    with quiet_context(target_max_block_size=None):  # a bucket is one block
        numbers = ray.data.from_items(list(range(len(items))), override_num_blocks=len(items))
        rows = numbers.map_batches(read_item, batch_format="pyarrow", batch_size=1, zero_copy_batch=True)
        buckets = rows.sort(BUCKET, boundaries=list(range(1, num_buckets)))
        results = buckets.map_batches(write_bucket, batch_format="pyarrow", batch_size=None, zero_copy_batch=True)
        yield from results_of(results, what=what, num_tasks=len(items))
