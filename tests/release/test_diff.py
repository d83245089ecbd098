"""What `diff` says of two releases: counted by hand, and for vectors against their own cosine."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.tiny_release import ReleaseMaker, unit_vectors

from indexing.release.diff import ItemCounts, ReleaseDiff, diff_releases
from indexing.release.manifest import Release
from indexing.store import Store
from indexing.store.cache import BlobCache

IDS = [f"item-{number:03}" for number in range(100)]
VECTORS = unit_vectors(100)


def publish(store: Store, folder: Path, ids: list[str], vectors: np.ndarray, num_shards: int = 1) -> Release:
    """A release of one collection, made in a folder of its own."""
    folder.mkdir()
    maker = ReleaseMaker(folder)
    return maker.publish(store, maker.collection("tracks", ids, vectors, num_shards), dim=vectors.shape[1])


def diff(store: Store, before: Release, after: Release, folder: Path) -> ReleaseDiff:
    return diff_releases(before, after, partial(BlobCache(folder / "cache").fetch, store))


def test_a_release_does_not_differ_from_itself(maker: ReleaseMaker, store: Store, tmp_path: Path) -> None:
    release = maker.publish(store, maker.collection("tracks", IDS, VECTORS, num_shards=2))
    found = diff(store, release, release, tmp_path)
    assert found.collections == {"tracks": ItemCounts(unchanged=100)}
    assert found.drift is not None
    assert (found.drift.mean, found.drift.percentile_95) == (0, 0)
    assert (found.num_same_graphs, found.num_shards) == (2, 2)
    assert found.same_bytes == found.size_bytes == release.size_bytes


def test_a_delta_is_counted_and_its_vectors_are_measured(maker: ReleaseMaker, store: Store, tmp_path: Path) -> None:
    """Ten items come back with other content, five go, three are new."""
    collection = maker.collection("tracks", IDS, VECTORS)
    before = maker.publish(store, collection)
    ids, vectors = [*IDS[:10], "new-1", "new-2", "new-3"], unit_vectors(13, seed=3)
    shard = maker.changed(collection.shards[0], list(range(15)), ids, vectors, version=2)
    after = maker.publish(store, replace(collection, num_items=98, shards=(shard,)))
    found = diff(store, before, after, tmp_path)
    assert found.collections == {"tracks": ItemCounts(new=3, changed=10, unchanged=85, deleted=5)}
    drifts = np.concatenate([1 - (VECTORS[:10] * vectors[:10]).sum(axis=1), np.zeros(85)])
    assert found.drift is not None
    assert found.drift.mean == pytest.approx(drifts.mean(), abs=1e-4)
    assert found.drift.percentile_95 == pytest.approx(np.quantile(drifts, 0.95, method="inverted_cdf"), abs=1e-4)
    assert (found.num_same_graphs, found.num_shards) == (1, 1)
    backwards = diff(store, after, before, tmp_path)
    assert backwards.collections == {"tracks": ItemCounts(new=5, changed=10, unchanged=85, deleted=3)}
    assert backwards.drift == found.drift


@pytest.mark.parametrize("num_shards", [(1, 3), (3, 1), (2, 3)])
def test_the_number_of_shards_makes_no_difference(store: Store, tmp_path: Path, num_shards: tuple[int, int]) -> None:
    before = publish(store, tmp_path / "before", IDS[:90], VECTORS[:90], num_shards[0])
    after = publish(store, tmp_path / "after", IDS[20:], VECTORS[20:], num_shards[1])
    assert diff(store, before, after, tmp_path).collections == {"tracks": ItemCounts(new=10, unchanged=70, deleted=20)}


def test_collections_that_are_added_and_removed_are_new_and_gone(
    maker: ReleaseMaker, store: Store, tmp_path: Path
) -> None:
    tracks, shows = maker.collection("tracks", IDS, VECTORS), maker.collection("shows", IDS[:30], VECTORS[:30])
    found = diff(store, maker.publish(store, tracks), maker.publish(store, shows), tmp_path)
    assert found.collections == {"shows": ItemCounts(new=30), "tracks": ItemCounts(deleted=100)}
    assert found.drift is None


def test_vectors_of_another_dimension_are_not_compared(store: Store, tmp_path: Path) -> None:
    before = publish(store, tmp_path / "before", IDS, VECTORS)
    after = publish(store, tmp_path / "after", IDS, unit_vectors(100, dim=24))
    assert diff(store, before, after, tmp_path).drift is None


def test_progress_counts_every_item_of_the_later_release(store: Store, tmp_path: Path) -> None:
    before = publish(store, tmp_path / "before", IDS[:50], VECTORS[:50], 2)
    after = publish(store, tmp_path / "after", IDS, VECTORS, 2)
    told: list[int] = []
    diff_releases(before, after, partial(BlobCache(tmp_path / "cache").fetch, store), told.append)
    assert sum(told) == 100
