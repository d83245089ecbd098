"""Verification reads what is stored, not what was sent."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_release import ReleaseMaker, unit_vectors

from indexing.errors import DamagedError
from indexing.release.manifest import Release
from indexing.release.shard import ITEMS_SCHEMA
from indexing.release.verify import verify_release
from indexing.store import Store, open_store
from indexing.store.blobs import Blob, blob_key

IDS = [f"item-{i}" for i in range(60)]


@pytest.fixture
def target_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture
def published(maker: ReleaseMaker, target_store: Store) -> Release:
    (maker.folder / "model").mkdir()
    (maker.folder / "model" / "config.json").write_text("{}")
    (maker.folder / "model" / "weights.safetensors").write_bytes(b"w" * 1000)
    return maker.publish(
        target_store,
        maker.collection("tracks", IDS, unit_vectors(60), num_shards=2),
        maker.collection("shows", IDS[:9], unit_vectors(9)),
        encoder=maker.encoder(maker.folder / "model", ["config.json", "weights.safetensors"], 16),
    )


def test_a_valid_release_is_counted_blob_by_blob(target_store: Store, published: Release) -> None:
    seen: list[Blob] = []
    report = verify_release(target_store, published, seen.append)
    assert report.num_blobs == len(seen) == len({blob.sha256 for blob in seen}) == 11
    assert (report.size_bytes, report.num_items) == (published.size_bytes, 69)


def test_a_release_on_any_store_can_be_verified(store_url: str, maker: ReleaseMaker) -> None:
    release = maker.publish(open_store(store_url), maker.collection("tracks", IDS, unit_vectors(60)))
    assert verify_release(open_store(store_url), release).num_items == 60


@pytest.mark.case(11)
@pytest.mark.parametrize("how", ["flip", "truncate", "grow", "delete"])
def test_one_damaged_blob_of_any_kind_is_named(target_store: Store, published: Release, how: str) -> None:
    for sha256 in published.blobs():
        key = blob_key(sha256)
        data = target_store.get(key)
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        if how == "delete":
            target_store.delete(key)
        else:
            target_store.put(key, {"flip": flipped, "truncate": data[:-1], "grow": data + b"\0"}[how])
        with pytest.raises(DamagedError, match=sha256):
            verify_release(target_store, published)
        target_store.put(key, data)
    verify_release(target_store, published)


def test_many_damages_are_listed_briefly_and_counted(target_store: Store, published: Release) -> None:
    for sha256 in published.blobs():
        target_store.delete(blob_key(sha256))
    with pytest.raises(DamagedError, match=r"\(and 8 more\)$") as caught:
        verify_release(target_store, published)
    assert "\n" not in str(caught.value)


def publish_items(maker: ReleaseMaker, store: Store, table: pa.Table) -> Release:
    """A release of one shard whose items Parquet is `table`."""
    collection = maker.collection("tracks", IDS, unit_vectors(60))
    path = maker.folder / "other.items.parquet"
    pq.write_table(table, path)
    shard = dataclasses.replace(collection.shards[0], items=maker.add_file(path))
    return maker.publish(store, dataclasses.replace(collection, shards=(shard,)))


@pytest.mark.parametrize(
    ("item_ids", "message"),
    [
        ([*IDS[:-1], IDS[0]], "expected 60 distinct ids, got 59"),
        (IDS[:-1], "expected 60 rows, got 59"),
        ([*IDS[:-1], None], "got nulls"),
    ],
)
def test_ids_that_repeat_or_are_missing_are_found(
    maker: ReleaseMaker, target_store: Store, item_ids: list[str], message: str
) -> None:
    table = pa.table([item_ids, [b"f" * 16] * len(item_ids)], schema=ITEMS_SCHEMA)
    with pytest.raises(DamagedError, match=message):
        verify_release(target_store, publish_items(maker, target_store, table))


def test_an_items_file_of_another_schema_is_found(maker: ReleaseMaker, target_store: Store) -> None:
    release = publish_items(maker, target_store, pa.table({"item_id": IDS}))
    with pytest.raises(DamagedError, match="expected columns item_id string, fingerprint"):
        verify_release(target_store, release)


def test_shards_that_swapped_places_are_found(maker: ReleaseMaker, target_store: Store) -> None:
    """An id in the wrong shard's key range could be in two shards, and nobody would notice."""
    collection = maker.collection("tracks", IDS, unit_vectors(60), num_shards=2)
    one, two = collection.shards
    shards = (dataclasses.replace(two, number=0), dataclasses.replace(one, number=1))
    release = maker.publish(target_store, dataclasses.replace(collection, shards=shards))
    with pytest.raises(DamagedError, match="expected only ids of this shard"):
        verify_release(target_store, release)


def test_a_graph_or_metadata_of_another_count_is_found(maker: ReleaseMaker, target_store: Store) -> None:
    large, small = maker.collection("a", IDS, unit_vectors(60)), maker.collection("b", IDS[:50], unit_vectors(50))
    for part, message in (("index", "expected 60 items, the file says 50"), ("metadata", "expected 60 rows, got 50")):
        shard = dataclasses.replace(large.shards[0], **{part: getattr(small.shards[0], part)})
        release = maker.publish(target_store, dataclasses.replace(large, shards=(shard,)))
        with pytest.raises(DamagedError, match=message):
            verify_release(target_store, release)


def test_an_encoder_of_other_files_than_its_digest_says_is_found(
    maker: ReleaseMaker, target_store: Store, published: Release
) -> None:
    assert published.encoder is not None
    encoder = dataclasses.replace(published.encoder, files=published.encoder.files[:1])
    release = maker.publish(target_store, *published.collections, encoder=encoder)
    with pytest.raises(DamagedError, match="encoder: expected digest"):
        verify_release(target_store, release)
