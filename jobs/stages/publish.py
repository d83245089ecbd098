"""Stage 5: blobs first, each verified in the store, then the release file, created only if absent: the commit point."""

import datetime
import importlib.metadata
import json
import logging
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from cluster.fanout import fan_out
from indexing.encoder import encoder_digest, encoder_files
from indexing.encoder.layout import read_layout
from indexing.release.commit import UploadCounts, missing_blobs, publish_release, upload_blobs
from indexing.release.lease import Lease
from indexing.release.manifest import Collection, EncoderEntry, EncoderFile, Release
from indexing.release.signing import load_private_key, sign_release
from indexing.store import Store, open_store
from indexing.store.blobs import Blob, blob_of, file_blob
from jobs.config.schema import Config
from jobs.inputs.encoder import local_model
from jobs.inputs.queries import query_texts
from jobs.progress import Bar, Progress
from jobs.workspace.artifact import Artifact
from jobs.workspace.blobs import local_blobs
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.records import BuiltShard, built_shards

logger = logging.getLogger(__name__)
TOOLS = ("nightcrate", "hnswlib", "numpy", "pyarrow", "ray", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` did: the release that is current now, and what it cost."""

    release: Release
    is_new: bool
    """False when the current release held the same already."""
    uploads: UploadCounts


def publish(
    config: Config,
    prepared: Artifact,
    built: Artifact,
    validated: Artifact,
    parent: Release | None,
    lease: Lease,
    progress: Progress,
) -> Published:
    """Publishes what has passed validation as the release after `parent`, unless that holds the same already.

    Raises PublishConflict when `parent` is no longer the current release or the lease is lost.
    """
    store = open_store(config.store, config.s3)
    figures = validated.require_marker()["report"]
    report = json.dumps(figures, sort_keys=True, indent=1).encode()
    release = make_release(config, prepared, built, figures["collections"], parent, blob_of(report))
    if config.publish.signing_key:
        release = sign_release(release, load_private_key(Path(config.publish.signing_key)))
    if parent and not config.publish.always and same_content(release, parent) and not missing_blobs(store, parent):
        return Published(release=parent, is_new=False, uploads=NOTHING)
    uploads: list[UploadCounts] = []

    def upload(bar: Bar) -> None:
        for counts in upload_all(config, store, release, built_shards(built), report, parent):
            uploads.append(counts)
            bar.advance(counts.uploaded_bytes + counts.reused_bytes)

    with progress.stage("publish", release.size_bytes, "bytes") as bar:
        publish_release(store, release, lambda: upload(bar), lease.check)
    return Published(release=release, is_new=True, uploads=sum_uploads(uploads))


def find_published(config: Config, prepared: Artifact, built: Artifact, parent: Release | None) -> Published | None:
    """The current release, where it was validated by the same configuration and holds what was built now already."""
    if parent is None or config.publish.always or parent.config_fingerprint != config_fingerprint(config):
        return None
    figures = {collection.name: {"ef_search": collection.ef_search} for collection in parent.collections}
    if figures.keys() != prepared.require_marker()["num_items"].keys():
        return None
    release = make_release(config, prepared, built, figures, parent, parent.report)
    is_same = same_content(release, parent) and not missing_blobs(open_store(config.store, config.s3), parent)
    return Published(release=parent, is_new=False, uploads=NOTHING) if is_same else None


def upload_all(
    config: Config, store: Store, release: Release, shards: list[BuiltShard], report: bytes, parent: Release | None
) -> Iterator[UploadCounts]:
    """The driver's own blobs, then those of the shards, one task a shard."""
    read_back = config.publish.verify == "download"
    yield upload_own_blobs(config, store, release, report, parent, read_back)
    for _, counts in fan_out(
        lambda shard: upload_shard.remote(shard, store, parent, read_back), shards, what="publish"
    ):
        yield counts


def make_release(
    config: Config,
    prepared: Artifact,
    built: Artifact,
    figures: dict[str, Any],
    parent: Release | None,
    report: Blob | None,
) -> Release:
    """`figures` are those of validation, by collection."""
    rows, shards = prepared.require_marker(), built_shards(built)
    return Release(
        number=parent.number + 1 if parent else 1,
        parent=parent.number if parent else None,
        kind="build",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        writer_id=uuid.uuid4().hex,
        name=config.name,
        encoder=None if config.vectors.path else encoder_entry(config, shards[0].dim),
        text_templates={} if config.vectors.path else config.catalogue.text,
        dim=shards[0].dim,
        index=config.index.params(),
        collections=tuple(
            Collection(
                name=name,
                item_types=tuple(config.catalogue.collections[name].item_types),
                num_items=num_items,
                ef_search=figures[name]["ef_search"],
                shards=tuple(shard.entry for shard in shards if shard.collection == name),
            )
            for name, num_items in rows["num_items"].items()
        ),
        catalogue_fingerprint=rows["catalogue_fingerprint"],
        config_fingerprint=config_fingerprint(config),
        validation=figures,
        report=report,
        tools={name: importlib.metadata.version(name) for name in TOOLS},
    )


def config_fingerprint(config: Config) -> str:
    """Changes with all that can change what is served, or what it is held to, but for the rows of the catalogue."""
    catalogue, validation = replace(config.catalogue, path=None), replace(config.validation, queries=None)
    return fingerprint(catalogue, config.encoder, config.index, validation, query_texts(config))


def encoder_entry(config: Config, dim: int) -> EncoderEntry:
    folder = local_model(config)
    files = tuple(EncoderFile(path=name, blob=file_blob(folder / name)) for name in encoder_files(folder))
    return EncoderEntry(
        digest=encoder_digest(folder),
        dim=dim,
        max_tokens=config.encoder.max_tokens,
        dtype=config.encoder.dtype,
        prompts=read_layout(folder).prompts,
        files=files,
    )


def same_content(release: Release, parent: Release) -> bool:
    """Whether both would serve the same; their numbers, times, writers and tools may differ."""
    identity = (
        "signature",
        "number",
        "parent",
        "kind",
        "created_at",
        "writer_id",
        "tools",
        "validation",
        "report",
        "catalogue_fingerprint",
        "config_fingerprint",
    )
    return replace(release, **{name: getattr(parent, name) for name in identity}) == parent


def upload_own_blobs(
    config: Config, store: Store, release: Release, report: bytes, parent: Release | None, read_back: bool
) -> UploadCounts:
    """The encoder's files and the report, which the driver has at hand."""
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "report.json")
        path.write_bytes(report)
        files = {blob_of(report): path}
        if release.encoder:
            files |= {file.blob: local_model(config) / file.path for file in release.encoder.files}
        return upload_blobs(store, files, files.__getitem__, parent=parent, read_back=read_back)


@ray.remote
def upload_shard(shard: BuiltShard, store: Store, parent: Release | None, read_back: bool) -> UploadCounts:
    blobs = {blob.sha256: blob for _, blob in shard.entry.blobs()}
    with local_blobs(shard.workspace) as fetch:
        return upload_blobs(store, blobs.values(), fetch, parent=parent, read_back=read_back)


NOTHING = UploadCounts(uploaded=0, uploaded_bytes=0, reused=0, reused_bytes=0)


def sum_uploads(uploads: list[UploadCounts]) -> UploadCounts:
    names = ("uploaded", "uploaded_bytes", "reused", "reused_bytes")
    return UploadCounts(**{name: sum(getattr(counts, name) for counts in uploads) for name in names})
