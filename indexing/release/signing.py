"""Signed releases: Ed25519 (RFC 8032) over the canonical bytes of a release file without its signature.

The digests in the file carry the signature over to every blob. Keys are PEM files, as `openssl genpkey -algorithm
ed25519` makes them. To change keys: give readers both public keys, publish with the new private key, then take the old
one away.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from indexing.errors import ConfigError, DamagedError
from indexing.release.codec import encode_canonical
from indexing.release.manifest import Release, Signature


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises ConfigError when the file is no unencrypted Ed25519 private key in PEM."""
    key = _parse(path, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"expected an Ed25519 private key in {path}, got {type(key).__name__}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises ConfigError when the file is no Ed25519 public key in PEM."""
    key = _parse(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"expected an Ed25519 public key in {path}, got {type(key).__name__}")
    return key


def _parse(path: Path, parse: Callable[[bytes], object]) -> object:
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"expected an Ed25519 key in PEM in {path}, got none: {type(error).__name__}") from error


def sign_release(release: Release, key: Ed25519PrivateKey) -> Release:
    """The release with this key's signature in place of any other."""
    signature = key.sign(_signed_bytes(release)).hex()
    return replace(release, signature=Signature(key_id=key_id(key.public_key()), ed25519=signature))


def check_signature(release: Release, keys: Sequence[Ed25519PublicKey], source: str) -> None:
    """Raises DamagedError unless one of `keys` has signed this release as it is."""
    if release.signature is None:
        raise DamagedError(
            f"{source}: expected a release signed by a trusted key, got release {release.number} unsigned"
        )
    fitting = [key for key in keys if key_id(key) == release.signature.key_id]
    if not fitting:
        raise DamagedError(
            f"{source}: expected release {release.number} signed by {' or '.join(map(key_id, keys))}, "
            f"got the key {release.signature.key_id[:16]!r}"
        )
    try:
        fitting[0].verify(bytes.fromhex(release.signature.ed25519), _signed_bytes(release))
    except (InvalidSignature, ValueError) as error:
        raise DamagedError(f"{source}: release {release.number} is not what its publisher signed") from error


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _signed_bytes(release: Release) -> bytes:
    return encode_canonical(replace(release, signature=None))
