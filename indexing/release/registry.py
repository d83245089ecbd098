"""The accepted encoders of a store, numbered like its releases: the file of a number is the commit point.

encoders/files/<digest>/…              a sentence-transformers folder, named by its encoder digest, never changed
encoders/00000000000000000042.json     created only if absent; the highest number is the newest accepted encoder
"""

import datetime
import re
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from indexing.encoder import encoder_digest, encoder_files
from indexing.errors import DamagedError, PublishConflict
from indexing.release.codec import decode_strict, encode_canonical
from indexing.store import Store
from indexing.store.blobs import SHA256, upload_folder

PREFIX = "encoders/"
MAX_BYTES = 1 << 20
_KEY = re.compile(r"encoders/(\d{20})\.json")


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
