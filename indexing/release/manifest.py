"""The release file: what a release consists of, by digest, and the strict reading and writing of it."""

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from indexing.dense.params import IndexParams
from indexing.errors import DamagedError
from indexing.key_ranges import KeyRange, key_range, shard_range
from indexing.release.codec import MAX_INT, check_distinct, decode_strict, encode_canonical, refuse
from indexing.release.encoder_entry import EncoderEntry, check_encoder
from indexing.release.hold import Hold
from indexing.release.seal import check_digest
from indexing.store.blobs import SHA256, Blob

MAX_RELEASE_BYTES = 32 * 1024 * 1024
MAX_DIM = 65_536
RELEASES_PREFIX = "releases/"
FORMAT_VERSION: Literal[2] = 2
"""Of what is written; all versions before it are read."""
_RELEASE_KEY = re.compile(r"releases/(\d{20})\.json", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Items added to a shard after its graph was built."""

    num_rows: int
    items: Blob
    """As the shard's. In format version 1 also: vector fixed_size_list<float32>."""
    metadata: Blob
    """As the shard's."""
    index: Blob | None = None
    """A graph of its own, as the shard's; None in format version 1."""
    num_nodes: int | None = None
    """As the shard's."""


@dataclass(frozen=True, kw_only=True)
class Tombstones:
    """Rows of a shard's graph and deltas that were deleted, or replaced by a later row."""

    num_rows: int
    labels: Blob
    """Parquet: label int64, ascending."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A graph and the rows it was built from, then deltas, whose labels continue from there, minus the tombstones."""

    number: int
    """0 … num_shards - 1 within the collection."""
    num_items: int
    """Rows that are not tombstones."""
    index: Blob
    """HNSW file as hnswlib saves it, with a node for each distinct fingerprint, in the order of their first rows."""
    items: Blob
    """Parquet, label order: item_id string, fingerprint fixed_size_binary(16)."""
    metadata: Blob
    """Parquet, label order: the columns to display."""
    num_nodes: int | None = None
    """Of the graph; None where it has one for each row, as in format version 1."""
    deltas: tuple[Delta, ...] | None = None
    """Oldest first; None while there are none."""
    tombstones: Tombstones | None = None

    @property
    def num_rows(self) -> int:
        """Of the graph and all deltas, tombstones included."""
        return self.num_items + (self.tombstones.num_rows if self.tombstones else 0)

    @property
    def num_base_rows(self) -> int:
        """Of the graph alone."""
        return self.num_rows - sum(delta.num_rows for delta in self.deltas or ())

    @property
    def change_share(self) -> float:
        """Tombstones and rows of deltas, as a share of the rows that the graph was built from."""
        num_deleted = self.tombstones.num_rows if self.tombstones else 0
        return (num_deleted + self.num_rows - self.num_base_rows) / self.num_base_rows

    def blobs(self) -> Iterator[tuple[str, Blob]]:
        """Every blob with the path of its field."""
        yield from (("index", self.index), ("items", self.items), ("metadata", self.metadata))
        for i, delta in enumerate(self.deltas or ()):
            yield from ((f"deltas[{i}].items", delta.items), (f"deltas[{i}].metadata", delta.metadata))
            if delta.index:
                yield f"deltas[{i}].index", delta.index
        if self.tombstones:
            yield "tombstones.labels", self.tombstones.labels


@dataclass(frozen=True, kw_only=True)
class Collection:
    name: str
    item_types: tuple[str, ...]
    num_items: int
    ef_search: int
    """The smallest ef that met the recall target when the release was validated."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Signature:
    key_id: str
    """First 16 hex digits of the SHA-256 of the raw public key: which of several keys to try."""
    ed25519: str
    """128 hex digits."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release file. Its number is its name: releases/%020d.json."""

    format_version: Literal[1, 2] = FORMAT_VERSION
    number: int
    parent: int | None
    """number - 1, or None for the first release of a store."""
    kind: Literal["build", "rollback"]
    created_at: str
    """ISO 8601, UTC."""
    writer_id: str
    """Unique to the publishing run, so that it recognises its own commit."""
    name: str
    encoder: EncoderEntry | None
    """None where the vectors came precomputed."""
    text_templates: dict[str, str]
    """How an item reads as text, by item type."""
    dim: int
    metric: Literal["ip"] = "ip"
    index: IndexParams
    collections: tuple[Collection, ...]
    catalogue_fingerprint: str
    config_fingerprint: str
    validation: dict[str, Any]
    """The figures of the gates, as JSON."""
    report: Blob | None
    tools: dict[str, str]
    """Versions of what built it."""
    holds: tuple[Hold, ...] | None = None
    """What was rolled back from and is not published again, newest first; None where there is none."""
    digest: str | None = None
    """SHA-256 of the canonical bytes without this field and `signature`; None in older releases."""
    signature: Signature | None = None
    """By the publisher, over the canonical bytes of everything else."""

    @property
    def num_items(self) -> int:
        return sum(collection.num_items for collection in self.collections)

    def keys_of(self, collection: Collection, shard: Shard) -> KeyRange:
        """The id keys whose items are in the shard."""
        return keys_of_shard(self.format_version, collection, shard)

    def blobs(self) -> dict[str, Blob]:
        """Every blob the release needs, once each, by sha256."""
        return {blob.sha256: blob for _, blob in _named_blobs(self)}

    @property
    def size_bytes(self) -> int:
        return sum(blob.size_bytes for blob in self.blobs().values())


def keys_of_shard(format_version: int, collection: Collection, shard: Shard) -> KeyRange:
    find = key_range if format_version == 1 else shard_range
    return find(shard.number, len(collection.shards))


def release_key(number: int) -> str:
    return f"{RELEASES_PREFIX}{number:020d}.json"


def release_number(key: str) -> int | None:
    """The number that a key under releases/ carries, None for any other name."""
    match = _RELEASE_KEY.fullmatch(key)
    return int(match[1]) if match and 1 <= int(match[1]) <= MAX_INT else None


def release_to_bytes(release: Release) -> bytes:
    """The canonical bytes of the release file. DamagedError where a reader would refuse them."""
    data = encode_canonical(release)
    if len(data) > MAX_RELEASE_BYTES:
        raise DamagedError(f"expected a release file of at most {MAX_RELEASE_BYTES} bytes, got {len(data)}")
    parse_release(data)
    return data


def parse_release(data: bytes) -> Release:
    """The release that `data` holds. DamagedError, one line naming the field, for anything that is not one."""
    release = decode_strict(Release, data)
    check_digest(data)
    _check_head(release)
    for position, collection in enumerate(release.collections):
        _check_collection(collection, release.format_version, f"collections[{position}]")
    check_distinct([collection.name for collection in release.collections], "collections")
    if release.encoder is not None:
        check_encoder(release.encoder, release.dim)
    _check_blobs(release)
    return release


def _check_head(release: Release) -> None:
    if release.number < 1:
        refuse("number", "1 or more", release.number)
    parent = release.number - 1 or None
    if release.parent != parent:
        refuse("parent", f"{parent} for release {release.number}", release.parent)
    try:
        offset = datetime.datetime.fromisoformat(release.created_at).utcoffset()
    except ValueError:
        offset = None
    if offset != datetime.timedelta(0):
        refuse("created_at", "an ISO 8601 time in UTC", release.created_at)
    if not release.writer_id:
        refuse("writer_id", "a unique text", release.writer_id)
    if not 1 <= release.dim <= MAX_DIM:
        refuse("dim", f"1 to {MAX_DIM}", release.dim)
    if release.index.M < 2 or release.index.ef_construction < 1:
        refuse("index", "M of 2 or more and ef_construction of 1 or more", release.index)
    if not release.collections:
        refuse("collections", "at least one", release.collections)
    if release.holds is not None and not release.holds:
        refuse("holds", "at least one, or no such field", release.holds)


def _check_collection(collection: Collection, version: int, path: str) -> None:
    if not collection.name:
        refuse(f"{path}.name", "a name", collection.name)
    if collection.ef_search < 1:
        refuse(f"{path}.ef_search", "1 or more", collection.ef_search)
    if not collection.shards:
        refuse(f"{path}.shards", "at least one", collection.shards)
    for position, shard in enumerate(collection.shards):
        if shard.number != position:
            refuse(f"{path}.shards[{position}].number", position, shard.number)
        if shard.num_items < 1:
            refuse(f"{path}.shards[{position}].num_items", "1 or more", shard.num_items)
        _check_changes(shard, version, f"{path}.shards[{position}]")
    total = sum(shard.num_items for shard in collection.shards)
    if collection.num_items != total:
        refuse(f"{path}.num_items", f"{total}, the sum of its shards", collection.num_items)


def _check_changes(shard: Shard, version: int, path: str) -> None:
    if shard.deltas is not None and not shard.deltas:
        refuse(f"{path}.deltas", "at least one, or no such field", shard.deltas)
    for position, delta in enumerate(shard.deltas or ()):
        if delta.num_rows < 1:
            refuse(f"{path}.deltas[{position}].num_rows", "1 or more", delta.num_rows)
        if (delta.index is None) != (version == 1):
            refuse(f"{path}.deltas[{position}].index", "a graph from format version 2 on, not before", delta.index)
        _check_nodes(delta.num_nodes, delta.num_rows, version, f"{path}.deltas[{position}]")
    if shard.tombstones and shard.tombstones.num_rows < 1:
        refuse(f"{path}.tombstones.num_rows", "1 or more", shard.tombstones.num_rows)
    if shard.num_base_rows < 1:
        refuse(f"{path}.num_items", "more rows than the deltas have", shard.num_items)
    _check_nodes(shard.num_nodes, shard.num_base_rows, version, path)


def _check_nodes(num_nodes: int | None, num_rows: int, version: int, path: str) -> None:
    if num_nodes is not None and not (version > 1 and 1 <= num_nodes < num_rows):
        refuse(f"{path}.num_nodes", f"less than {num_rows} rows, from format version 2 on", num_nodes)


def _check_blobs(release: Release) -> None:
    sizes: dict[str, int] = {}
    for path, blob in _named_blobs(release):
        if not SHA256.fullmatch(blob.sha256):
            refuse(f"{path}.sha256", "64 hex digits", blob.sha256)
        if sizes.setdefault(blob.sha256, blob.size_bytes) != blob.size_bytes:
            refuse(f"{path}.size_bytes", f"{sizes[blob.sha256]}, as elsewhere in the file", blob.size_bytes)


def _named_blobs(release: Release) -> Iterator[tuple[str, Blob]]:
    for i, collection in enumerate(release.collections):
        for j, shard in enumerate(collection.shards):
            for name, blob in shard.blobs():
                yield f"collections[{i}].shards[{j}].{name}", blob
    for i, file in enumerate(release.encoder.files if release.encoder else ()):
        yield f"encoder.files[{i}].blob", file.blob
    if release.report is not None:
        yield "report", release.report
