"""A release file carries its own digest, so that a flipped bit in any of its fields is found, signed or not."""

import hashlib
import reprlib
from dataclasses import replace
from typing import TYPE_CHECKING

from indexing.errors import DamagedError
from indexing.release.codec import encode_canonical, split_fields

if TYPE_CHECKING:
    from indexing.release.manifest import Release

OWN_FIELDS = ("digest", "signature")
"""What the digest does not cover. The signature covers the digest."""


def seal(release: "Release") -> "Release":
    """The release with its own digest, and without a signature, which would no longer match."""
    bare = replace(release, digest=None, signature=None)
    return replace(bare, digest=hashlib.sha256(encode_canonical(bare)).hexdigest())


def check_digest(data: bytes) -> None:
    """Raises DamagedError where a release file has a digest that is not that of its other fields.

    Older files, without a digest, pass.
    """
    found, rest = split_fields(data, OWN_FIELDS)
    digest = hashlib.sha256(rest).hexdigest()
    if found.get("digest", digest) != digest:
        raise DamagedError(f"digest: expected {digest}, that of the other fields, got {reprlib.repr(found['digest'])}")
