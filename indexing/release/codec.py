"""Strict JSON for frozen dataclasses: what is written is canonical, what is read is exactly what the types say.

OmegaConf turns "12" into 12, and pyarrow has no nested validation; a release file must be read more strictly.
"""

import dataclasses
import functools
import json
import math
import reprlib
import types
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from indexing.errors import DamagedError

T = TypeVar("T")
MAX_INT = 2**63 - 1
MAX_DEPTH = 32
MAX_PATH = 200
"""Characters of a field's path that an error shows."""


def encode_canonical(value: Any) -> bytes:
    """A dataclass as UTF-8 JSON: keys sorted, no spaces. DamagedError for NaN, infinite numbers, lone surrogates.

    A field that defaults to None is left out while it is None, so that later fields don't change older files.
    """
    try:
        return _dump(to_plain(value))
    except ValueError as error:
        raise DamagedError(f"expected finite numbers and Unicode texts, got: {reprlib.repr(str(error))}") from error


def split_fields(data: bytes, names: Iterable[str]) -> tuple[dict[str, Any], bytes]:
    """The top-level fields `names` of a JSON object, those that it has, and the canonical bytes of all others.

    Checks no types, so that it is fast on any data. Raises DamagedError for anything but a JSON object.
    """
    value = _load(data)
    if not isinstance(value, dict):
        raise DamagedError(f"expected a JSON object, got {type(value).__name__}")
    found = {name: value.pop(name) for name in names if name in value}
    try:
        return found, _dump(value)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"expected finite numbers and Unicode texts, got: {reprlib.repr(str(error))}") from error


def to_plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, for JSON."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        optional = _optional_fields(kind)
        fields = {name: getattr(value, name) for name in _field_names(kind)}
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
    """The dataclass `kind` that `data` holds. DamagedError names the first field that does not match its type.

    Fields may be str, int (0 … 2⁶³-1), float, bool, Literal, a dataclass, `tuple[X, ...]`, `dict[str, X]`, `X | None`,
    or Any for free JSON. Only the canonical form is accepted, so equal releases have equal bytes.
    """
    value = _load(data)
    decoded = from_plain(kind, value)
    if _dump(value) != data:  # `from_plain` converts nothing, so this is the canonical form of `decoded`
        raise DamagedError("expected canonical JSON (sorted distinct keys, no spaces), got another form of it")
    return decoded


def check_distinct(values: list[str], path: str) -> None:
    for value, count in Counter(values).items():
        if count > 1:
            refuse(path, "distinct names", f"{value} {count} times")


def refuse(path: str, expected: object, got: object) -> NoReturn:
    raise DamagedError(f"{path}: expected {expected}, got {str(got)[:80]!r}")


def _load(data: bytes) -> Any:
    try:
        return json.loads(data.decode())
    except ValueError as error:
        raise DamagedError(f"expected JSON, got {len(data)} bytes that are not: {reprlib.repr(str(error))}") from error
    except RecursionError as error:
        raise DamagedError(f"expected JSON of a sane depth, got {len(data)} bytes nested too deeply") from error


def _dump(plain: Any) -> bytes:
    """Raises ValueError for NaN, infinite numbers and lone surrogates."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


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
    if origin in (types.UnionType, Union):  # the second of a Literal and None
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
    for name in _optional_fields(kind) & fields.keys():
        if fields[name] is None:
            raise DamagedError(f"{path or 'top level'}: expected a value for {name}, or no such field, got null")
    dot = f"{path}." if path else ""
    return kind(**{name: _decode(hint, fields[name], f"{dot}{name}") for name, hint in hints.items() if name in fields})


@functools.cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _optional_fields(kind: Any) -> frozenset[str]:
    """Fields that were added later: absent from older files, and from newer ones while they are None."""
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
    if not _is_unicode(value):
        raise DamagedError(f"{path}: expected Unicode text, got a lone surrogate in {reprlib.repr(value)}")
    return value


def _checked_json(value: Any, path: str) -> Any:
    """Free JSON up to `MAX_DEPTH`: texts that UTF-8 can hold, numbers that a float64 or int64 can."""
    if problem := _json_problem(value, 0):
        where, reason = problem
        raise DamagedError(f"{(path + where)[:MAX_PATH]}: {reason}")
    return value


def _json_problem(value: Any, depth: int) -> tuple[str, str] | None:
    """(path below `value`, what is wrong there). The path is made only where something is wrong: files are large."""
    if depth > MAX_DEPTH:
        return "", f"expected at most {MAX_DEPTH} levels, got more"
    if isinstance(value, dict):
        for key, item in value.items():
            if problem := _json_problem(key, depth) or _json_problem(item, depth + 1):
                return f"[{reprlib.repr(key)}]{problem[0]}", problem[1]
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if problem := _json_problem(item, depth + 1):
                return f"[{i}]{problem[0]}", problem[1]
    elif isinstance(value, str):
        if not _is_unicode(value):
            return "", f"expected Unicode text, got a lone surrogate in {reprlib.repr(value)}"
    elif not (math.isfinite(value) if isinstance(value, float) else abs(value or 0) <= MAX_INT):
        return "", f"expected a finite number, got {reprlib.repr(value)}"
    return None


def _is_unicode(value: str) -> bool:
    """False for a text with a lone surrogate, which UTF-8 cannot hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
