"""Strict JSON for frozen dataclasses: what is written is canonical, what is read is exactly what the types say.

OmegaConf turns "12" into 12 and pyarrow has no nested validation; a release file deserves neither leniency.
"""

import dataclasses
import functools
import json
import math
import reprlib
import types
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from indexing.errors import DamagedError

T = TypeVar("T")
MAX_INT = 2**63 - 1
MAX_DEPTH = 32


def encode_canonical(value: Any) -> bytes:
    """A dataclass as UTF-8 JSON: keys sorted, no spaces. DamagedError for NaN, infinite numbers, lone surrogates.

    A field that defaults to None is left out while it is None, so that later fields don't change older files.
    """
    plain = to_plain(value)
    try:
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise DamagedError(f"expected finite numbers and Unicode texts, got: {reprlib.repr(str(error))}") from error


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, for JSON."""
    if dataclasses.is_dataclass(value):
        optional = _optional_fields(type(value))
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: to_plain(item) for name, item in fields.items() if item is not None or name not in optional}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def from_plain(kind: type[T], value: Any) -> T:
    """The dataclass `kind` that `to_plain` made `value` of. DamagedError names the first field of another type."""
    decoded: T = _decode(kind, value, "")
    return decoded


def decode_strict(kind: type[T], data: bytes) -> T:
    """The dataclass `kind` that `data` holds. DamagedError names the first field that is not as the types say.

    Fields may be str, int (0 … 2⁶³-1), float, bool, Literal, a dataclass, `tuple[X, ...]`, `dict[str, X]`, `X | None`,
    or Any for free JSON. Only the canonical form is accepted, so equal releases have equal bytes.
    """
    try:
        value = json.loads(data.decode())
        decoded = from_plain(kind, value)
        is_canonical = encode_canonical(decoded) == data
    except ValueError as error:
        raise DamagedError(f"expected JSON, got {len(data)} bytes that are not: {reprlib.repr(str(error))}") from error
    except RecursionError as error:
        raise DamagedError(f"expected JSON of a sane depth, got {len(data)} bytes nested too deeply") from error
    if not is_canonical:
        raise DamagedError("expected canonical JSON (sorted distinct keys, no spaces), got another form of it")
    return decoded


def _decode(hint: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _decode_object(hint, value, path)
    if hint is Any:
        return _checked_json(value, path)
    if origin is tuple:
        return tuple(_decode(args[0], item, f"{path}[{i}]") for i, item in enumerate(_expect(list, value, path)))
    if origin is dict:
        items = _expect(dict, value, path).items()
        return {_text(key, path): _decode(args[1], item, f"{path}[{reprlib.repr(key)}]") for key, item in items}
    if origin is types.UnionType:
        return None if value is None else _decode(args[0], value, path)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in args):
            raise DamagedError(f"{path}: expected {' or '.join(map(repr, args))}, got {reprlib.repr(value)}")
        return value
    if hint is bool:
        return _expect(bool, value, path)
    if hint is float:
        return _checked_json(value if type(value) is int else _expect(float, value, path), path)
    return _text(_expect(str, value, path), path) if hint is str else _count(value, path)


def _decode_object(kind: type, value: Any, path: str) -> Any:
    hints = _type_hints(kind)
    fields = _expect(dict, value, path)
    for name in sorted((hints.keys() ^ fields.keys()) - (_optional_fields(kind) - fields.keys())):
        state = "missing" if name in hints else "unknown"
        raise DamagedError(f"{state} field {reprlib.repr(name)} in {path or 'the top level'}")
    dot = f"{path}." if path else ""
    return kind(**{name: _decode(hint, fields[name], f"{dot}{name}") for name, hint in hints.items() if name in fields})


def _optional_fields(kind: type) -> frozenset[str]:
    """Fields that came later: absent from older files, and from newer ones while they are None."""
    return frozenset(field.name for field in dataclasses.fields(kind) if field.default is None)


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _expect(kind: type[T], value: Any, path: str) -> T:
    if type(value) is not kind:
        raise DamagedError(f"{path or 'top level'}: expected {kind.__name__}, got {reprlib.repr(value)}")
    return value


def _count(value: Any, path: str) -> int:
    count = _expect(int, value, path)
    if not 0 <= count <= MAX_INT:
        raise DamagedError(f"{path}: expected 0 to 2**63 - 1, got {reprlib.repr(value)}")
    return count


def _text(value: str, path: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DamagedError(f"{path}: expected Unicode text, got a lone surrogate in {reprlib.repr(value)}") from error
    return value


def _checked_json(value: Any, path: str, depth: int = 0) -> Any:
    """Free JSON up to `MAX_DEPTH`: texts that UTF-8 can hold, numbers that a float64 or int64 can."""
    if depth > MAX_DEPTH:
        raise DamagedError(f"{path[:80]}: expected at most {MAX_DEPTH} levels, got more")
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, dict):
        for key, item in value.items():
            _checked_json(item, f"{path}[{reprlib.repr(_text(key, path))}]", depth + 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _checked_json(item, f"{path}[{i}]", depth + 1)
    elif not (math.isfinite(value) if isinstance(value, float) else abs(value or 0) <= MAX_INT):
        raise DamagedError(f"{path}: expected a finite number, got {reprlib.repr(value)}")
    return value
