"""The release that a run follows, and what of it may be carried over."""

import logging
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from indexing.errors import ConfigError, DamagedError
from indexing.release.commit import read_release, release_numbers
from indexing.release.manifest import Release
from indexing.release.signing import load_private_key, load_public_key
from indexing.store import Store
from jobs.config.schema import PublishConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Current:
    """The current release of a store, valid or not."""

    number: int | None
    """None in a store that has no release yet."""
    release: Release | None
    """What a run may compare with and carry over; None where there is no release, or none that it may trust."""


def current_release(store: Store, publish: PublishConfig) -> Current:
    """A release that is damaged, or that is not signed by a key of the publisher, is followed but not carried over.

    What is carried over would be published under this publisher's name, vectors and all. Raises ConfigError for keys
    that cannot be read, StoreUnavailable.
    """
    keys, numbers = publisher_keys(publish), release_numbers(store)
    if not numbers:
        return Current(None, None)
    try:
        return Current(numbers[-1], read_release(store, numbers[-1], keys))
    except DamagedError as error:
        logger.warning("%s; nothing of it is carried over or compared with, and all shards are built whole", error)
        return Current(numbers[-1], None)


def publisher_keys(publish: PublishConfig) -> list[Ed25519PublicKey] | None:
    """The public keys whose releases this publisher signs again; None where it signs nothing."""
    key = publisher_key(publish)
    if key is None:
        if publish.trusted_keys:
            raise ConfigError("publish.trusted_keys: expected publish.signing_key with them, got none")
        return None
    return [key.public_key(), *(load_public_key(Path(path)) for path in publish.trusted_keys)]


def publisher_key(publish: PublishConfig) -> Ed25519PrivateKey | None:
    return load_private_key(Path(publish.signing_key)) if publish.signing_key else None
