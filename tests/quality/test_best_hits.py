"""Hits merged as numbers: the k best over all shards, whatever order these come in."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.quality import best_hits
from jobs.quality.best_hits import BestHits, Hits, shard_hits

Ranking = list[tuple[str, float]]
"""(item id, score), best first."""


def random_shards(rng: np.random.Generator, num_queries: int, sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(ids, float32 (num_queries, size) scores) of each shard; few different scores, so that many tie."""
    names = [f"item-{number}" for number in rng.permutation(sum(sizes))]
    ids = [np.array(names[end - size : end], object) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
    values = np.array([-1, -0.5, -0.0, 0.0, 0.25, 0.5, 0.75], np.float32)
    return [(of_shard, rng.choice(values, (num_queries, len(of_shard)))) for of_shard in ids]


def reference(shards: list[tuple[np.ndarray, np.ndarray]], num_queries: int, k: int) -> list[Ranking]:
    rankings = []
    for query in range(num_queries):
        found = [hit for ids, scores in shards for hit in zip(ids, scores[query].tolist(), strict=True)]
        rankings.append(sorted(found, key=lambda hit: (-hit[1], hit[0]))[:k])
    return rankings


def search(ids: np.ndarray, scores: np.ndarray, k: int, floor: np.ndarray) -> Hits:
    """What a task does, a few queries at a time; among equal scores a shard's k best are the first by id."""
    order = np.array([np.lexsort((ids.astype(str), -row)) for row in scores])[:, : min(k, len(ids))]
    blocks = [
        (order[start : start + 3], np.take_along_axis(scores, order, axis=1)[start : start + 3])
        for start in range(0, len(scores), 3)
    ]
    return shard_hits(blocks, floor, pa.chunked_array([ids.tolist()], pa.string()))


def rankings_of(best: BestHits) -> list[Ranking]:
    pairs = zip(best.item_ids.tolist(), best.scores.tolist(), strict=True)
    return [list(zip(ids, scores, strict=True)) for ids, scores in pairs]


@pytest.mark.parametrize("seed", range(30))
def test_the_best_over_all_shards_are_the_same_in_any_order_and_with_the_floor_of_any_time(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_hits, "QUERIES_PER_BLOCK", 4)
    rng = np.random.default_rng(seed)
    num_queries, k = int(rng.integers(1, 12)), int(rng.integers(1, 15))
    shards = random_shards(rng, num_queries, rng.integers(1, 30, size=rng.integers(1, 9)).tolist())
    expected = reference(shards, num_queries, k)
    for _ in range(2):
        best = BestHits(num_queries, k)
        floors = [best.floor]
        for number in rng.permutation(len(shards)):
            best.add(search(*shards[number], k, floors[rng.integers(len(floors))]))
            floors.append(best.floor)
        best.merge()
        assert rankings_of(best) == expected
        assert len(best.ids) == len({hit[0] for ranking in expected for hit in ranking}), "only what is still needed"


def test_hits_below_the_floor_do_not_leave_the_task() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], np.float32)
    labels = np.array([[2, 0, 1], [0, 2, 1]])
    floor = np.array([0.5, 0.9], np.float32)
    hits = shard_hits([(labels, scores)], floor, pa.chunked_array([["a", "b", "c"]]))
    assert hits.counts.tolist() == [2, 1]
    assert hits.ids.to_pylist() == ["a", "c"]
    assert [hits.ids[item].as_py() for item in hits.items] == ["c", "a", "a"]
    assert hits.scores.tolist() == pytest.approx([0.9, 0.5, 0.9])


def test_what_waits_to_be_merged_is_never_much_more_than_what_is_held() -> None:
    best, waiting = BestHits(num_queries=4, k=5), []
    for ids, scores in random_shards(np.random.default_rng(1), 4, [20] * 12):
        best.add(search(ids, scores, 5, best.floor))
        waiting.append(sum(len(hits.items) for hits in best._waiting))
    assert max(waiting) < 4 * 5
