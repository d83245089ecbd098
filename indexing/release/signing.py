"""Signed releases: Ed25519 (RFC 8032) over the canonical bytes of a release file without its signature.

The digests in the file carry the signature over to every blob. Keys are PEM files, as `openssl genpkey -algorithm
ed25519` makes them. To change keys: give readers both public keys, publish with the new private key, then remove the
old public key.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from indexing.errors import ConfigError, DamagedError, UntrustedError
from indexing.release.codec import encode_canonical
from indexing.release.manifest import Release, Signature
from indexing.release.seal import seal

FIELD = b',"signature":{'
WRITTEN = re.compile(rb',"signature":\{"ed25519":"([^"\\]{0,200})","key_id":"([^"\\]{0,200})"\}')
"""The field in a release file, whose form is canonical: fields are sorted, and others come before it."""
Keys = TypeVar("Keys", bound=Sequence[Ed25519PublicKey])


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Raises ConfigError when the file is not an unencrypted Ed25519 private key in PEM."""
    key = _parse(path, lambda data: load_pem_private_key(data, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"expected an Ed25519 private key in {path}, got {type(key).__name__}")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Raises ConfigError when the file is not an Ed25519 public key in PEM."""
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
    """The release, sealed, with this key's signature in place of any other."""
    sealed = seal(release)
    signature = key.sign(encode_canonical(sealed)).hex()
    return replace(sealed, signature=Signature(key_id=key_id(key.public_key()), ed25519=signature))


def check_signed_bytes(data: bytes, keys: Sequence[Ed25519PublicKey]) -> Signature:
    """Checks a release file's signature before anything of it is parsed, and returns it.

    So a file that nobody trusted has signed costs no more than to read it, whatever it holds. In a sound file the
    result is the release's own signature; the caller compares. Raises UntrustedError for a file that is unsigned, or
    signed by another key than `keys`, DamagedError for one that differs from what was signed, and ConfigError where
    there are no keys.
    """
    _require_some(keys)
    start = data.rfind(FIELD)
    if start < 0:
        raise UntrustedError("expected it signed by a trusted key, got it unsigned")
    found = WRITTEN.match(data, start)
    if found is None:
        raise DamagedError("its signature is not as a publisher writes it")
    signature = Signature(ed25519=found[1].decode("latin-1"), key_id=found[2].decode("latin-1"))
    key = next((key for key in keys if key_id(key) == signature.key_id), None)
    if key is None:
        raise UntrustedError(
            f"expected it signed by {' or '.join(map(key_id, keys))}, got the key {signature.key_id[:16]!r}"
        )
    try:
        key.verify(bytes.fromhex(signature.ed25519), data[:start] + data[found.end() :])
    except (InvalidSignature, ValueError) as error:
        raise DamagedError("it is not what its publisher signed") from error
    return signature


def require_key(current: Release, key: Ed25519PrivateKey | None, setting: str, source: str) -> None:
    """Raises ConfigError where an unsigned release would follow a signed one: readers with a key would refuse it."""
    if key is None and current.signature is not None:
        raise ConfigError(
            f"{source}: release {current.number} is signed by the key {current.signature.key_id}, and its readers "
            f"would refuse an unsigned release after it; name that private key, or its successor, with {setting}"
        )


def key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def load_trusted_keys(paths: Sequence[Path] | None) -> list[Ed25519PublicKey] | None:
    """None where signatures are not checked. Raises ConfigError for an empty list, which would trust nobody."""
    if paths is None:
        return None
    return _require_some([load_public_key(path) for path in paths])


def _require_some(keys: Keys) -> Keys:
    if not keys:
        raise ConfigError("trusted_keys: expected at least one public key, got an empty list; None accepts any release")
    return keys
