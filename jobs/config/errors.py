"""What is wrong with a configuration, in one line that names the key and not the libraries that found it."""

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from pydantic import ValidationError
from yaml import MarkedYAMLError

from jobs.config.fields import describe, fields_of, is_section, split

UNKNOWN = ("unexpected_keyword_argument", "invalid_key")
MAX_SHOWN = 80


def explain_values(root: type, error: ValidationError) -> str:
    """The first error, unknown keys before all others: a misspelt key often leaves another one missing too."""
    details = error.errors(include_url=False)
    first = min(details, key=lambda detail: not _is_unknown(detail))
    place = first["loc"]
    if first["type"] == "conflict":
        context = first["ctx"]
        key = join_key((*place, context["key"]))
        return f"{key}: expected {context['expected']}, got {show(context['value'])}"
    if _is_unknown(first):
        return unknown_key(root, place[:-1] if place[-1] == "[key]" else place)
    if first["type"] == "missing":
        return f"expected a value for {join_key(place)}, got none"
    key, kind = find(root, place)
    return f"{key}: expected {describe(kind)}, got {show(first['input'])}"


def explain_yaml(error: Exception) -> str:
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    mark = error.problem_mark
    return f"not YAML: line {mark.line + 1}, column {mark.column + 1}: {' '.join(str(error.problem).split())}"


def explain_reading(error: OmegaConfBaseException) -> str:
    """`error`: of a file that is valid YAML."""
    if isinstance(error, GrammarParseError):
        return f"{error.full_key}: expected a complete interpolation such as ${{KEY}}; a literal ${{ is written \\${{"
    return "expected keys that are text"


def explain_interpolation(error: OmegaConfBaseException) -> str:
    """`error`: of an interpolation such as ${name} that does not resolve."""
    key, values = error.full_key, OmegaConf.to_container(error.parent_node, resolve=False)
    raw = str(values[error.key])  # type: ignore[index]
    variable = re.search(r"\$\{oc\.env:([^,}]+)\}", raw)
    if variable and "nvironment variable" in str(error):
        return (
            f"{key}: environment variable {variable[1]} is not set; set it, or write ${{oc.env:{variable[1]},DEFAULT}}"
        )
    return f"{key}: expected ${{KEY}} of a key in this configuration or ${{oc.env:VARIABLE}}, got {show(raw)}"


def unknown_key(root: type, place: Sequence[str | int]) -> str:
    *sections, name = *place[:-1], str(place[-1])
    _, kind = find(root, sections)
    bare = split(kind)[0]
    known = list(fields_of(bare)) if is_section(bare) else [str(key) for key in _keys_of_mapping(bare)]
    if not known:  # a name that the user chooses, which can be any text
        return f"{join_key(sections)}: expected names that are text, got {show(place[-1])}"
    by_small = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), by_small, n=1)
    hint = f"did you mean {by_small[near[0]]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {join_key([*sections, name])}; {hint}"


def find(root: type, place: Sequence[str | int]) -> tuple[str, Any]:
    """(key, type) of the field at `place`; pydantic's own marks after the field are left out."""
    kind: Any = root
    known: list[str | int] = []
    for part in place:
        bare = split(kind)[0]
        if is_section(bare):
            kind = fields_of(bare)[str(part)]
        elif get_origin(bare) is dict:
            kind = get_args(bare)[1]
        elif get_origin(bare) is list:
            kind = get_args(bare)[0]
        else:
            break
        known.append(part)
    return join_key(known), kind


def join_key(place: Sequence[str | int]) -> str:
    """`catalogue.collections.tracks.item_types[0]`, as an override writes it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def show(value: object) -> str:
    """A value as YAML users know it, cut to a line."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def _is_unknown(detail: Any) -> bool:
    return detail["type"] in UNKNOWN or (bool(detail["loc"]) and detail["loc"][-1] == "[key]")


def _keys_of_mapping(bare: Any) -> tuple[Any, ...]:
    key = split(get_args(bare)[0])[0]
    return get_args(key) if get_origin(key) is Literal else ()
