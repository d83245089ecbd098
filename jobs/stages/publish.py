"""Stage 5: blobs first, each verified in the store, then the release file, created only if absent: the commit point."""

import datetime
import importlib.metadata
import logging
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray

from cluster.fanout import fan_out
from indexing.encoder import resolve_dtype
from indexing.encoder.layout import read_layout
from indexing.release.codec import to_plain
from indexing.release.commit import UploadCounts, missing_blobs, publish_release, upload_blobs
from indexing.release.encoder_entry import EncoderEntry
from indexing.release.hold import Hold, find_hold
from indexing.release.manifest import Collection, Release
from indexing.release.signing import sign_release
from indexing.store import Store
from indexing.store.blobs import Blob, blob_of
from jobs.config.schema import Config
from jobs.inputs.encoder import EncoderInput
from jobs.inputs.inputs import Inputs
from jobs.inputs.parent import publisher_key
from jobs.progress import Bar
from jobs.run import Run
from jobs.workspace.blobs import local_blobs
from jobs.workspace.fingerprint import fingerprint
from jobs.workspace.records import Built, BuiltShard, Prepared, Validated

logger = logging.getLogger(__name__)
TOOLS = ("nightcrate", "hnswlib", "numpy", "pyarrow", "ray", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `publish` did: the release that is current now, and what was uploaded."""

    release: Release
    is_new: bool
    """False when the current release already had the same content."""
    uploads: UploadCounts


def publish(run: Run, inputs: Inputs, prepared: Prepared, built: Built, validated: Validated) -> Published:
    """Publishes what has passed validation as the release after the parent, unless that has the same content.

    Raises PublishConflict when the parent is no longer the current release or the lease is lost.
    """
    store, report, parent = run.store, validated.report, inputs.parent
    figures = {name: to_plain(found) for name, found in report.collections.items()}
    ef_search = {name: found.ef_search for name, found in report.collections.items()}
    data = report.to_bytes()
    release = make_release(run, inputs, prepared, built, ef_search, figures, blob_of(data))
    if key := publisher_key(run.config.publish):
        release = sign_release(release, key)
    if is_published(run, release, parent):
        assert parent is not None
        return Published(release=parent, is_new=False, uploads=NOTHING)
    uploads: list[UploadCounts] = []

    def upload(bar: Bar) -> None:
        for counts in upload_all(run, inputs, release, built.shards, data):
            uploads.append(counts)
            bar.advance(counts.uploaded_bytes + counts.reused_bytes)

    with run.stage("publish", release.size_bytes, "bytes") as bar:
        release = publish_release(store, release, lambda: upload(bar), run.check)
    return Published(release=release, is_new=True, uploads=sum_uploads(uploads))


def find_unchanged(run: Run, inputs: Inputs) -> Published | None:
    """The current release, where it was made from the same catalogue, encoder and configuration by the same versions.

    Only the catalogue's files have been read by then.
    """
    parent, encoder = inputs.parent, inputs.encoder
    if parent is None or run.config.publish.always:
        return None
    is_same = (
        parent.catalogue_fingerprint == inputs.source.fingerprint
        and parent.config_fingerprint == config_fingerprint(run.config, inputs.queries)
        and (parent.encoder.digest if parent.encoder else None) == (encoder.digest if encoder else None)
        and parent.tools == tool_versions()
        and parent.kind == "build"
    )
    return (
        Published(release=parent, is_new=False, uploads=NOTHING)
        if is_same and not missing_blobs(run.store, parent)
        else None
    )


def find_published(run: Run, inputs: Inputs, prepared: Prepared, built: Built) -> Published | None:
    """The current release, where it was validated by the same configuration and has the content that was built now."""
    parent = inputs.parent
    if parent is None or parent.config_fingerprint != config_fingerprint(run.config, inputs.queries):
        return None
    ef_search = {collection.name: collection.ef_search for collection in parent.collections}
    if ef_search.keys() != prepared.num_items.keys():
        return None
    release = make_release(run, inputs, prepared, built, ef_search, parent.validation, parent.report)
    return Published(release=parent, is_new=False, uploads=NOTHING) if is_published(run, release, parent) else None


def why_held(run: Run, inputs: Inputs) -> str | None:
    """Why this run must not publish: it would publish what was rolled back from. None if it may publish."""
    parent = inputs.parent
    if parent is None:
        return None
    candidate = Hold(
        release=parent.number + 1,
        catalogue_fingerprint=inputs.source.fingerprint,
        config_fingerprint=config_fingerprint(run.config, inputs.queries),
        encoder=inputs.encoder.digest if inputs.encoder else None,
    )
    hold = find_hold(parent, candidate)
    if hold is None:
        return None
    return (
        f"release {hold.release} was rolled back from, and this run would publish the same catalogue, encoder and "
        f"configuration again: change one of them, or lift the hold with: nightcrate resume {run.store.url}"
    )


def is_published(run: Run, release: Release, parent: Release | None) -> bool:
    """Whether the current release has the same content, and all its blobs are in the store."""
    if parent is None or run.config.publish.always:
        return False
    return same_content(release, parent) and not missing_blobs(run.store, parent)


def upload_all(
    run: Run, inputs: Inputs, release: Release, shards: Sequence[BuiltShard], report: bytes
) -> Iterator[UploadCounts]:
    """The driver's own blobs, then those of the shards, one task per shard."""
    read_back, parent = run.config.publish.verify == "download", inputs.parent
    yield upload_own_blobs(run.store, inputs.encoder, report, parent, read_back)
    for _, counts in fan_out(
        lambda shard: upload_shard.remote(shard, run.workspace, run.store, parent, read_back), shards, what="publish"
    ):
        yield counts


def make_release(
    run: Run,
    inputs: Inputs,
    prepared: Prepared,
    built: Built,
    ef_search: Mapping[str, int],
    validation: dict[str, Any],
    report: Blob | None,
) -> Release:
    """`ef_search` and `validation`, the figures as JSON, are by collection."""
    config, dim = run.config, built.shards[0].dim
    return Release(
        number=(inputs.current or 0) + 1,
        parent=inputs.current,
        kind="build",
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        writer_id=uuid.uuid4().hex,
        name=config.name,
        encoder=encoder_entry(config, inputs.encoder, dim) if inputs.encoder else None,
        text_templates=inputs.rules.text or {},
        dim=dim,
        index=config.index.params(),
        collections=tuple(
            Collection(
                name=name,
                item_types=tuple(config.catalogue.collections[name].item_types),
                num_items=num_items,
                ef_search=ef_search[name],
                shards=tuple(shard.entry for shard in built.shards if shard.collection == name),
            )
            for name, num_items in prepared.num_items.items()
        ),
        catalogue_fingerprint=prepared.catalogue_fingerprint,
        config_fingerprint=config_fingerprint(config, inputs.queries),
        validation=validation,
        report=report,
        tools=tool_versions(),
    )


def tool_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in TOOLS}


def config_fingerprint(config: Config, queries: list[str] | None) -> str:
    """Changes with everything that can change what is served or how it is measured, except the catalogue's rows."""
    catalogue = asdict(replace(config.catalogue, path=None))
    del catalogue["columns"]  # in the fingerprint of the rows
    return fingerprint(catalogue, config.encoder, config.index, replace(config.validation, queries=None), queries)


def encoder_entry(config: Config, encoder: EncoderInput, dim: int) -> EncoderEntry:
    return EncoderEntry(
        digest=encoder.digest,
        dim=dim,
        max_tokens=config.encoder.max_tokens,
        dtype=config.encoder.dtype,
        resolved_dtype=resolve_dtype(encoder.settings),
        prompts=read_layout(encoder.folder).prompts,
        files=encoder.files,
    )


def same_content(release: Release, parent: Release) -> bool:
    """Whether both would serve the same; their numbers, times, writers and tools may differ."""
    identity = (
        "digest",
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
        "holds",
    )
    return replace(release, **{name: getattr(parent, name) for name in identity}) == parent


def upload_own_blobs(
    store: Store, encoder: EncoderInput | None, report: bytes, parent: Release | None, read_back: bool
) -> UploadCounts:
    """The encoder's files and the report, which are on the driver's machine."""
    with tempfile.TemporaryDirectory(prefix="nightcrate-") as folder:
        path = Path(folder, "report.json")
        path.write_bytes(report)
        files = {blob_of(report): path}
        if encoder:
            files |= {file.blob: encoder.folder / file.path for file in encoder.files}
        return upload_blobs(store, files, files.__getitem__, parent=parent, read_back=read_back)


@ray.remote
def upload_shard(
    shard: BuiltShard, workspace: Store, store: Store, parent: Release | None, read_back: bool
) -> UploadCounts:
    blobs = {blob.sha256: blob for _, blob in shard.entry.blobs()}
    with local_blobs(workspace) as fetch:
        return upload_blobs(store, blobs.values(), fetch, parent=parent, read_back=read_back)


NOTHING = UploadCounts(uploaded=0, uploaded_bytes=0, reused=0, reused_bytes=0)


def sum_uploads(uploads: list[UploadCounts]) -> UploadCounts:
    names = ("uploaded", "uploaded_bytes", "reused", "reused_bytes")
    return UploadCounts(**{name: sum(getattr(counts, name) for counts in uploads) for name in names})
