"""The accepted encoders of a store, numbered like its releases: the file of a number is the commit point.

encoders/files/<digest>/…              a sentence-transformers folder, named by its encoder digest, never changed
encoders/00000000000000000042.json     created only if absent; the highest number is the newest accepted encoder
"""

import datetime
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from indexing.encoder import encoder_digest, encoder_files
from indexing.errors import DamagedError, PublishConflict
from indexing.release.codec import decode_strict, encode_canonical
from indexing.store import ObjectInfo, Store
from indexing.store.blobs import SHA256, upload_folder

PREFIX = "encoders/"
MAX_BYTES = 1 << 20
_KEY = re.compile(r"encoders/(\d{20})\.json")
_FILE = re.compile(r"encoders/files/[0-9a-f]{64}/.+")


@dataclass(frozen=True, kw_only=True)
class AcceptedEncoder:
    """One file of the registry."""

    format_version: Literal[1]
    number: int
    parent: int | None
    digest: str
    """Of the encoder's files, and the name of their folder."""
    base_digest: str
    """Of the encoder that training started from."""
    interactions_fingerprint: str
    catalogue_fingerprint: str
    config_fingerprint: str
    created_at: str
    writer_id: str
    metrics: Any
    """What it was accepted for: figures of the new and of the old encoder, and their difference."""


def encoder_numbers(store: Store) -> list[int]:
    """Ascending; the last is the newest accepted encoder."""
    matches = (_KEY.fullmatch(info.key) for info in store.list(PREFIX))
    return sorted(int(match[1]) for match in matches if match)


def read_accepted(store: Store, number: int) -> AcceptedEncoder:
    """Raises DamagedError where the file is not a valid entry."""
    key = entry_key(number)
    try:
        entry = decode_strict(AcceptedEncoder, store.get(key, max_bytes=MAX_BYTES))
    except DamagedError as error:
        raise DamagedError(f"{store.describe(key)}: {error}") from error
    if entry.number != number or not SHA256.fullmatch(entry.digest):
        raise DamagedError(f"{store.describe(key)}: expected encoder {number} and a digest, got {entry.number}")
    return entry


def newest_encoder(store: Store) -> AcceptedEncoder | None:
    numbers = encoder_numbers(store)
    return read_accepted(store, numbers[-1]) if numbers else None


def accept(store: Store, folder: Path, entry: AcceptedEncoder) -> AcceptedEncoder:
    """Stores the encoder in `folder`, then the entry, completed with its number, digest and time.

    Raises PublishConflict where another encoder was accepted since `entry.parent`; nothing is overwritten.
    """
    digest = encoder_digest(folder)
    entry = replace(
        entry,
        number=(entry.parent or 0) + 1,
        digest=digest,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        writer_id=uuid.uuid4().hex,
    )
    upload_folder(store, files_prefix(digest), folder, encoder_files(folder))
    current = next(reversed(encoder_numbers(store)), None)
    if current != entry.parent or not store.create(entry_key(entry.number), encode_canonical(entry)):
        raise PublishConflict(
            f"{store.url}: expected encoder {entry.parent or 'none'} to be the newest accepted one, but another came "
            "in between: train again from it"
        )
    return entry


def unused_encoders(store: Store, kept: Iterable[str], min_age_s: float) -> list[ObjectInfo]:
    """Files of encoders that are not the newest, not among the digests `kept`, and older than `min_age_s`."""
    now, newest = store.now(), newest_encoder(store)
    in_use = {*kept, newest.digest if newest else ""}
    files = [info for info in store.list(f"{PREFIX}files/") if _FILE.fullmatch(info.key)]
    young = {_digest(info) for info in files if now - info.modified <= min_age_s}
    return [info for info in files if _digest(info) not in in_use | young]


def delete_encoders(store: Store, files: Sequence[ObjectInfo], check: Callable[[], None]) -> int:
    """Deletes files that `unused_encoders` has found; returns how many. One that was sent again since stays."""
    num_deleted = 0
    for info in files:
        found, newest = store.head(info.key), newest_encoder(store)
        if found and found.modified <= info.modified and not (newest and newest.digest == _digest(info)):
            check()
            store.delete(info.key)
            num_deleted += 1
    return num_deleted


def _digest(info: ObjectInfo) -> str:
    return info.key.removeprefix(f"{PREFIX}files/").partition("/")[0]


def encoder_url(store: Store, entry: AcceptedEncoder) -> str:
    """As `encoder.model` takes it."""
    return f"{store.url}/{files_prefix(entry.digest)}"


def digest_of_url(url: str) -> str | None:
    """The digest that the encoder at such an address must have; None for any other address."""
    match = re.fullmatch(rf".+/{re.escape(PREFIX)}files/([0-9a-f]{{64}})/?", url)
    return match[1] if match else None


def files_prefix(digest: str) -> str:
    return f"{PREFIX}files/{digest}"


def entry_key(number: int) -> str:
    return f"{PREFIX}{number:020d}.json"
