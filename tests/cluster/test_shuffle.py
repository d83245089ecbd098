"""The shuffle by Ray Data: every row to its bucket, once, whatever the tasks and batches it came from."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest
from flow.conftest import ray_environment, shared_ray, short_folder  # noqa: F401  fixtures
from flow.worlds import ROOT

from cluster.shuffle import BUCKET, shuffle
from indexing.errors import DataError

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("shared_ray")]
NUM_BUCKETS = 16
Read = Callable[[int], Iterator[pa.Table]]
INTERRUPTED = """
import pyarrow as pa
from ray.data._internal.execution import streaming_executor
from cluster.session import ray_session
from cluster.shuffle import BUCKET, shuffle

set_up = streaming_executor._ClosingIterator.__init__

def interrupted(self, executor):
    set_up(self, executor)
    raise KeyboardInterrupt

def read(number):
    yield pa.table({BUCKET: pa.array([number], pa.int32())})

streaming_executor._ClosingIterator.__init__ = interrupted
try:
    with ray_session(None):
        list(shuffle(range(3), read, lambda rows: rows.num_rows, 3, what="test"))
except KeyboardInterrupt:
    print("ended")
"""
"""A signal at the one moment at which only Ray Data's own destructor cleans up."""


@pytest.fixture
def read() -> Read:
    """Three batches, of which one is empty. Not of this module, which Ray's workers cannot import."""

    def read_(number: int) -> Iterator[pa.Table]:
        for size in (50, 0, 7):
            values = np.random.default_rng([number, size]).integers(0, 1 << 16, size)
            buckets = pa.array(values * NUM_BUCKETS >> 16, pa.int32())
            yield pa.table({"value": values, "text": pa.array(["x" * 9] * size, pa.string()), BUCKET: buckets})

    return read_


def test_each_bucket_gets_all_of_its_rows_at_once(read: Read) -> None:
    def write(rows: pa.Table) -> tuple[list[int], list[int]]:
        return rows[BUCKET].unique().to_pylist(), sorted(rows["value"].to_pylist())

    found = sorted(shuffle(range(5), read, write, NUM_BUCKETS, what="test"))
    expected: dict[int, list[int]] = {}
    for table in (table for number in range(5) for table in read(number)):
        for value, bucket in zip(table["value"].to_pylist(), table[BUCKET].to_pylist(), strict=True):
            expected.setdefault(bucket, []).append(value)
    assert found == [([bucket], sorted(values)) for bucket, values in sorted(expected.items())]


def test_its_tasks_share_the_processes_of_other_tasks(read: Read) -> None:
    """What Ray Data would set to give them their own: without it no stage has to start processes."""

    def own_settings(rows: pa.Table) -> list[str]:
        return [name for name in os.environ if name.startswith("RAY_DATA_SHUFFLE")]

    assert list(shuffle([1], read, own_settings, 1, what="test")) == [[]]


def test_items_without_rows_write_nothing(read: Read) -> None:
    def read_nothing(number: int) -> Iterator[pa.Table]:
        return (table.slice(0, 0) for table in read(number))

    assert list(shuffle([1], read_nothing, lambda rows: rows.num_rows, NUM_BUCKETS, what="test")) == []


def test_an_expected_error_of_a_task_is_raised_as_what_it_is() -> None:
    def fail(number: int) -> Iterator[pa.Table]:
        raise DataError("expected rows, got none")
        yield

    with pytest.raises(DataError, match="expected rows, got none"):
        list(shuffle([1, 2], fail, lambda rows: rows.num_rows, NUM_BUCKETS, what="test"))


def test_an_interrupt_does_not_start_ray_again_after_its_end() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "ended\n"
    assert "Started a local Ray instance" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
