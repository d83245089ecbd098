"""The same name for equal values, by which artifacts are named."""

import dataclasses
import hashlib
import json


def fingerprint(*values: object) -> str:
    """Hex (32): the same for equal plain values (numbers, strings, lists, dicts, dataclasses), on every machine."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"no fingerprint for {type(value).__name__}")
