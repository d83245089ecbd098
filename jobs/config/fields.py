"""The types that fields of the configuration may have, and how each is described in English."""

import dataclasses
import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

SETTINGS = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
"""Of each class: an unknown key is an error, and `name: 2024` is text."""


@dataclasses.dataclass(frozen=True)
class Says:
    """How an error and the docs describe the values of a field, where its type says too little."""

    text: str


@dataclasses.dataclass(frozen=True)
class PathMark:
    """A field that holds a path or a URL: in a file, a relative one is relative to that file."""

    or_name: bool = False
    """Whether a name such as org/model is allowed too; it is a path where such a folder exists."""


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is not a number")
    return value


Integer = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Share = Annotated[Number, Ge(0), Le(1), Says("a share from 0 to 1")]
LocalPath = Annotated[str, PathMark(), Says("a path or URL")]
ModelPath = Annotated[str, PathMark(or_name=True), Says("a path, URL or name")]


def conflict(key: str, expected: str, value: object) -> PydanticCustomError:
    """What a validator raises when `key` of its class conflicts with another key."""
    return PydanticCustomError("conflict", "{expected}", {"key": key, "expected": expected, "value": value})


@cache
def fields_of(kind: type) -> dict[str, Any]:
    """Name → type of a class's fields, in order, with what `Annotated` adds."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def is_section(kind: Any) -> TypeGuard[type]:
    return dataclasses.is_dataclass(kind) and isinstance(kind, type)


def defaults_of(kind: type) -> dict[str, Any]:
    """Name → default of the fields that have one; of a section, its own such dictionary."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        bare = split(fields_of(kind)[field.name])[0]
        if is_section(bare):
            values[field.name] = defaults_of(bare)
        elif field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    return values


def split(kind: Any) -> tuple[Any, list[Any], bool]:
    """(the type itself, what `Annotated` adds to it, whether null is allowed)."""
    if get_origin(kind) is Annotated:
        inner, *added = get_args(kind)
        bare, more, nullable = split(inner)
        return bare, [*more, *added], nullable
    if get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in get_args(kind) if part is not types.NoneType]
        if len(rest) == 1:
            bare, added, _ = split(rest[0])
            return bare, added, True
    return kind, [], False


def describe(kind: Any, *, plural: bool = False) -> str:
    """The values that a type takes, as an error describes them: `an integer from 2 to 128`, `null or text`."""
    bare, added, nullable = split(kind)
    said = [mark.text for mark in added if isinstance(mark, Says)]
    text = said[-1] if said else _describe_bare(bare, added, plural)
    null = "null, " if " or " in text else "null or "
    return f"{null}{text}" if nullable else text


def _describe_bare(bare: Any, added: list[Any], plural: bool) -> str:
    names = {int: ("an integer", "integers"), float: ("a number", "numbers"), str: ("text", "texts")}
    if bare in names:
        return " ".join([names[bare][plural], *_limits(added)])
    if bare is bool:
        return "true or false"
    if is_section(bare):
        return "sections" if plural else f"a section with keys such as {', '.join(list(fields_of(bare))[:3])}"
    inner = get_args(bare)
    if get_origin(bare) is Literal:
        return _either(map(str, inner))
    if get_origin(bare) in (Union, types.UnionType):
        return _either(map(describe, inner))
    some = "a non-empty" if any(isinstance(mark, MinLen) for mark in added) else "a"
    if get_origin(bare) is list:
        return f"{some} list of {describe(inner[0], plural=True)}"
    assert get_origin(bare) is dict
    key = "names" if split(inner[0])[0] is str else f"keys ({describe(inner[0])})"
    return f"{some} mapping of {key} to {describe(inner[1], plural=True)}"


def _limits(added: list[Any]) -> Iterator[str]:
    limits = {
        type(mark): getattr(mark, type(mark).__name__.lower()) for mark in added if isinstance(mark, Ge | Gt | Le)
    }
    if Ge in limits:
        yield f"from {limits[Ge]} to {limits[Le]}" if Le in limits else f"of at least {limits[Ge]}"
    elif Gt in limits:
        yield f"above {limits[Gt]}" + (f" and at most {limits[Le]}" if Le in limits else "")


def _either(values: Iterator[str]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last
