"""A complete small release, made from random vectors, for the tests of release, search and verify."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexing.dense.hnsw import build_index
from indexing.dense.params import IndexParams
from indexing.dense.shard_graph import first_rows, node_numbers
from indexing.id_keys import id_keys, range_of
from indexing.key_ranges import shard_range
from indexing.release.commit import UploadCounts, commit_release, release_numbers, upload_blobs
from indexing.release.encoder_entry import EncoderEntry, EncoderFile
from indexing.release.manifest import (
    Collection,
    Delta,
    Release,
    Shard,
    Tombstones,
    release_key,
)
from indexing.release.shard import ITEMS_SCHEMA
from indexing.store import Store
from indexing.store.blobs import Blob

PARAMS = IndexParams(M=8, ef_construction=40, seed=1)
DIM = 16


def unit_vectors(num_rows: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num_rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def vector_column(vectors: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def send_files(
    store: Store, files: dict[str, Path], on_blob: Callable[[Blob], None] | None = None, **options: Any
) -> UploadCounts:
    """`upload_blobs` of local files, by sha256."""
    blobs = [Blob(sha256=sha256, size_bytes=path.stat().st_size) for sha256, path in files.items()]
    return upload_blobs(store, blobs, lambda blob: files[blob.sha256], on_blob, **options)


@dataclass
class ReleaseMaker:
    """Collects the files of a release in `folder`, and publishes them."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    def add_file(self, path: Path) -> Blob:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.files[sha256] = path
        return Blob(sha256=sha256, size_bytes=path.stat().st_size)

    def collection(
        self, name: str, item_ids: list[str], vectors: np.ndarray, num_shards: int = 1, texts: list[str] | None = None
    ) -> Collection:
        """Items of equal `texts`, by default those of equal ids, share a node, and have to have equal vectors."""
        texts = texts or item_ids
        numbers = range_of(id_keys(item_ids), [shard_range(number, num_shards) for number in range(num_shards)])
        shards = []
        for number in range(num_shards):
            rows, index = np.flatnonzero(numbers == number), self.folder / f"{name}-{number}.hnsw"
            nodes = node_numbers(pa.array([texts[row] for row in rows]))
            build_index(vectors[rows][first_rows(nodes)], PARAMS, index)
            shards.append(self.shard(number, [item_ids[row] for row in rows], index, [texts[row] for row in rows]))
        return Collection(name=name, item_types=(name,), num_items=len(item_ids), ef_search=50, shards=tuple(shards))

    def shard(self, number: int, item_ids: list[str], index: Path, texts: list[str] | None = None) -> Shard:
        """The shard of a graph that is built, with items and metadata next to it."""
        texts = texts or item_ids
        fingerprints = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        items = index.with_suffix(".items.parquet")
        pq.write_table(pa.table([item_ids, fingerprints], schema=ITEMS_SCHEMA), items)
        metadata = index.with_suffix(".metadata.parquet")
        pq.write_table(pa.table({"title": [f"title of {item_id}" for item_id in item_ids]}), metadata)
        return Shard(
            number=number,
            num_items=len(item_ids),
            index=self.add_file(index),
            items=self.add_file(items),
            metadata=self.add_file(metadata),
            num_nodes=len(set(texts)) if len(set(texts)) < len(texts) else None,
        )

    def changed(
        self, shard: Shard, gone: list[int], item_ids: list[str], vectors: np.ndarray, version: int = 1
    ) -> Shard:
        """The shard after these labels were deleted, and these items were added in one more delta."""
        path = self.folder / f"delta-{shard.number}-{shard.num_rows}"
        texts = [item_id if version == 1 else f"{item_id} {version}" for item_id in item_ids]
        fingerprints = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        pq.write_table(pa.table([item_ids, fingerprints], schema=ITEMS_SCHEMA), path.with_suffix(".items"))
        build_index(vectors, PARAMS, path.with_suffix(".hnsw"))
        pq.write_table(pa.table({"title": [f"title of {item_id}" for item_id in item_ids]}), path.with_suffix(".shown"))
        pq.write_table(pa.table({"label": pa.array(sorted(gone), pa.int64())}), path.with_suffix(".gone"))
        delta = Delta(
            num_rows=len(item_ids),
            items=self.add_file(path.with_suffix(".items")),
            metadata=self.add_file(path.with_suffix(".shown")),
            index=self.add_file(path.with_suffix(".hnsw")),
        )
        return replace(
            shard,
            num_items=shard.num_rows + len(item_ids) - len(gone),
            deltas=(*(shard.deltas or ()), delta),
            tombstones=Tombstones(num_rows=len(gone), labels=self.add_file(path.with_suffix(".gone"))),
        )

    def encoder(self, folder: Path, names: list[str], dim: int) -> EncoderEntry:
        files = tuple(EncoderFile(path=name, blob=self.add_file(folder / name)) for name in sorted(names))
        lines = "".join(f"{file.path}\0{file.blob.sha256}\n" for file in files)
        return EncoderEntry(
            digest=hashlib.sha256(lines.encode()).hexdigest(),
            dim=dim,
            max_tokens=64,
            dtype="float32",
            prompts={"query": "", "document": ""},
            files=files,
        )

    def publish(self, store: Store, *collections: Collection, **changes: Any) -> Release:
        """Uploads everything and commits it as the next release of the store."""
        send_files(store, self.files)
        number = len(release_numbers(store)) + 1
        return commit_release(store, make_release(number, *collections, **changes))


def bare_release(number: int, writer_id: str = "someone", **changes: Any) -> Release:
    """A valid release file; its blobs don't exist."""
    blob = Blob(sha256="a" * 64, size_bytes=1)
    shard = Shard(number=0, num_items=1, index=blob, items=blob, metadata=blob)
    collection = Collection(name="tracks", item_types=("track",), num_items=1, ef_search=10, shards=(shard,))
    return make_release(number, collection, writer_id=writer_id, **changes)


def publish_bare(store: Store, release: Release) -> bytes:
    """Its release file, without any blob; returns the bytes of the file."""
    commit_release(store, release)
    return store.get(release_key(release.number))


def make_release(number: int, *collections: Collection, **changes: Any) -> Release:
    values: dict[str, Any] = dict(  # noqa: C408 - reads as the call it stands for
        number=number,
        parent=number - 1 or None,
        kind="build",
        created_at="2026-01-31T02:00:00+00:00",
        writer_id=f"writer-{number}",
        name="tiny",
        encoder=None,
        text_templates={"default": "{title}"},
        dim=DIM,
        index=PARAMS,
        collections=collections,
        catalogue_fingerprint="c",
        config_fingerprint="f",
        validation={"recall_at_10": 0.97},
        report=None,
        tools={"hnswlib": "0.8.0"},
    )
    return Release(**(values | changes))
