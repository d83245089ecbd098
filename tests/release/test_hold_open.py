"""An open release stays open, whatever happens to cache and store; the encoder works as at validation."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny_encoder import write_tiny_encoder
from support.tiny_release import DIM, ReleaseMaker, unit_vectors

from indexing import open_release
from indexing.dense.hnsw import load_graph
from indexing.encoder import EncoderSettings, encoder_files, load_encoder, resolve_dtype
from indexing.errors import ConfigError, DamagedError, StoreUnavailable
from indexing.release.encoder_entry import EncoderEntry
from indexing.release.manifest import parse_release, release_to_bytes
from indexing.release.shard import load_shard
from indexing.store import Store
from indexing.store.blobs import Blob
from indexing.store.cache import MAX_TRIES, BlobCache, retry_vanished

TEXTS = ["calm piano", "loud guitar", "cooking pasta", "news today"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_encoder(tmp_path / "model", TEXTS)


def publish(store: Store, maker: ReleaseMaker, model: Path, **changes: str) -> np.ndarray:
    """A release whose items are `TEXTS`, one delta among them; returns their vectors."""
    vectors = load_encoder(model, EncoderSettings(model="", dtype="float32", device="cpu")).encode(TEXTS)
    tracks = maker.collection("tracks", TEXTS[:3], vectors[:3])
    shard = maker.changed(tracks.shards[0], [0], TEXTS[3:], vectors[3:])
    tracks = replace(tracks, num_items=3, shards=(shard,))
    entry: EncoderEntry = maker.encoder(model, encoder_files(model), vectors.shape[1])
    maker.publish(store, tracks, dim=vectors.shape[1], encoder=replace(entry, **changes))
    return vectors


@pytest.mark.case(27)
def test_an_open_release_needs_neither_cache_nor_store(
    store: Store, maker: ReleaseMaker, model: Path, tmp_path: Path
) -> None:
    """Metadata, also of deltas, and the encoder are used for the first time when all files were deleted."""
    publish(store, maker, model)
    opened = open_release(store.url, cache_dir=tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    shutil.rmtree(tmp_path / "store")
    hits = opened.search("cooking pasta", k=3)
    assert [hit.item_id for hit in hits][:1] == ["cooking pasta"]
    assert {hit.metadata["title"] for hit in hits} == {f"title of {text}" for text in TEXTS[1:]}


def test_an_open_shard_takes_no_file_descriptors(store: Store, maker: ReleaseMaker, tmp_path: Path) -> None:
    tracks = maker.collection("tracks", [f"t{i}" for i in range(300)], unit_vectors(300), num_shards=30)
    maker.publish(store, tracks)
    before = len(list(Path("/proc/self/fd").iterdir()))
    opened = open_release(store.url, cache_dir=tmp_path / "cache")
    assert len(list(Path("/proc/self/fd").iterdir())) < before + 10
    assert opened.search(unit_vectors(1), k=1)[0][0].metadata


@pytest.mark.case(27)
def test_a_file_that_another_process_trims_while_a_shard_is_loaded_is_fetched_again(
    store: Store, maker: ReleaseMaker, tmp_path: Path
) -> None:
    release = maker.publish(store, maker.collection("tracks", ["a", "b"], unit_vectors(2)))
    cache, collection = BlobCache(tmp_path / "cache"), release.collections[0]
    blobs = [blob for _, blob in collection.shards[0].blobs()]
    for blob in blobs:  # each in turn vanishes right after it was fetched
        left = {blob}

        def fetch(wanted: Blob, left: set[Blob] = left) -> Path:
            path = cache.fetch(store, wanted)
            if wanted in left:
                left.remove(wanted)
                path.unlink()
            return path

        assert retry_vanished(lambda: load_shard(fetch, DIM, collection, collection.shards[0])).num_items == 2
        assert not left


def test_a_cache_that_loses_all_its_files_at_once_is_named() -> None:
    tries: list[int] = []

    def load() -> None:
        tries.append(1)
        Path("/nowhere/blob").stat()

    with pytest.raises(StoreUnavailable, match="/nowhere/blob deleted"):
        retry_vanished(load)
    assert len(tries) == MAX_TRIES


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dtype": "auto", "resolved_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "auto", "resolved_dtype": "float32"}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_queries_are_encoded_in_the_number_format_of_the_release(
    store: Store, maker: ReleaseMaker, model: Path, tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    publish(store, maker, model, **changes)
    opened = open_release(store.url, cache_dir=tmp_path / "cache", device="cpu")
    assert (opened._encoder.dtype, opened._encoder.device) == (expected, "cpu")


@pytest.mark.parametrize(
    ("device", "message"), [("tpu", "expected auto, cpu, cuda"), ("cuda:99", "expected cuda:99 on this machine")]
)
def test_a_device_that_does_not_exist_is_an_error_of_the_arguments(
    store: Store, maker: ReleaseMaker, model: Path, tmp_path: Path, device: str, message: str
) -> None:
    publish(store, maker, model)
    with pytest.raises(ConfigError, match=message):
        open_release(store.url, cache_dir=tmp_path / "cache", device=device).search("calm piano", k=1)


def test_the_resolved_number_format_is_what_an_encoder_loads_in(model: Path) -> None:
    for dtype in ("auto", "float32", "bfloat16"):
        settings = EncoderSettings(model="", dtype=dtype)  # type: ignore[arg-type]
        assert resolve_dtype(settings) == load_encoder(model, settings).dtype
    assert resolve_dtype(EncoderSettings(model="", device="cuda:99")) is None
    assert resolve_dtype(EncoderSettings(model="", device="cuda:99", dtype="bfloat16")) == "bfloat16"


def test_a_release_file_with_another_number_format_is_refused(store: Store, maker: ReleaseMaker, model: Path) -> None:
    tracks = maker.collection("tracks", ["a"], unit_vectors(1))
    entry = replace(maker.encoder(model, encoder_files(model), DIM), resolved_dtype="float8")
    with pytest.raises(DamagedError, match=r"encoder\.resolved_dtype: expected float32 or bfloat16, got 'float8'"):
        maker.publish(store, tracks, encoder=entry)


def test_older_release_files_have_no_resolved_number_format(store: Store, maker: ReleaseMaker, model: Path) -> None:
    entry = maker.encoder(model, encoder_files(model), DIM)
    release = maker.publish(store, maker.collection("tracks", ["a"], unit_vectors(1)), encoder=entry)
    data = release_to_bytes(release)
    assert b"resolved_dtype" not in data
    assert parse_release(data).encoder == entry


def test_a_graph_that_vanishes_between_its_check_and_its_loading_is_not_called_damaged(
    maker: ReleaseMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.collection("tracks", ["a", "b"], unit_vectors(2))
    monkeypatch.setattr("indexing.dense.hnsw._check_header", lambda path, dim, num_items: path.unlink())
    with pytest.raises(FileNotFoundError):
        load_graph(tmp_path / "tracks-0.hnsw", DIM, 2)
