"""How many threads link the graph of a shard."""

import pytest

from jobs.stages.build import threads_of_a_shard


@pytest.mark.parametrize(
    ("cores", "num_shards", "num_threads"), [([8, 2], 1, 8), ([8, 2], 3, 3), ([8, 2], 40, 1), ([], 4, 1)]
)
def test_a_shard_has_its_share_of_the_cores_and_no_more_than_a_node_has(
    cores: list[int], num_shards: int, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that starts its workers on demand may have no node with cores yet."""
    monkeypatch.setattr("jobs.stages.build.cores_of_nodes", lambda: cores)
    assert threads_of_a_shard(num_shards) == num_threads
