"""`python -m jobs.config.reference` writes configs/schema.json and the key tables of docs/configuration.md."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from jobs.config.fields import defaults_of, describe, fields_of, is_section, split
from jobs.config.schema import SHORT_FORMS, Config

ROOT = Path(__file__).parents[2]
SCHEMA_PATH, DOCS_PATH = ROOT / "configs" / "schema.json", ROOT / "docs" / "configuration.md"
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
BEGIN, END = "<!-- keys: written by make docs-config -->\n", "<!-- end of keys -->\n"


def main() -> None:
    SCHEMA_PATH.write_text(schema_text(), encoding="utf-8")
    DOCS_PATH.write_text(with_keys(DOCS_PATH.read_text(encoding="utf-8")), encoding="utf-8")


def schema_text() -> str:
    """The JSON schema of a configuration file, by which editors complete and check it."""
    schema = _limits_by_name(TypeAdapter(Config).json_schema())
    classes = {kind.__name__: kind for _, kind in sections()}
    for name, definition in (*schema["$defs"].items(), ("Config", schema)):
        kind = classes[name]
        definition.pop("title", None)
        definition["description"] = inspect.getdoc(kind)
        notes, defaults = descriptions(kind), defaults_of(kind)
        for key in notes:
            entry = definition["properties"][key]
            entry.pop("title", None)
            entry |= {"description": notes[key]} | ({"default": defaults[key]} if key in defaults else {})
    for name in SHORT_FORMS:
        schema["properties"][name] = {"anyOf": [{"type": "string"}, schema["properties"][name]]}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nightcrate", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def with_keys(page: str) -> str:
    """The page with everything between the two marks replaced."""
    above, _, rest = page.partition(BEGIN)
    return f"{above}{BEGIN}\n{key_tables()}\n{END}{rest.partition(END)[2]}"


def key_tables() -> str:
    """Markdown: one table per section, in the order of the classes."""
    return "\n".join(_table(section, kind) for section, kind in sections())


def _table(section: str, kind: type) -> str:
    notes, defaults = descriptions(kind), defaults_of(kind)
    title = f"### `{section}`" if section else "### Top level"
    lines = [title, "", inspect.getdoc(kind) or "", "", "| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in fields_of(kind).items():
        if not is_section(split(field)[0]):
            key = f"{section}.{name}".removeprefix(".")
            default = f"`{_yaml(defaults[name])}`" if name in defaults else "required"
            lines.append(f"| `{key}` | {describe(field)} | {default} | {notes[name]} |")
    return "\n".join([*lines, ""])


def sections(section: str = "", kind: type = Config) -> Iterator[tuple[str, type]]:
    """(dotted name, class) of the top level and of every section below it; NAME stands for a name that users choose."""
    yield section, kind
    for name, field in fields_of(kind).items():
        bare = split(field)[0]
        inner = [split(part)[0] for part in getattr(bare, "__args__", ())]
        below = f"{section}.{name}".removeprefix(".")
        if is_section(bare):
            yield from sections(below, bare)
        elif inner and is_section(inner[-1]):
            yield from sections(f"{below}.NAME", inner[-1])


def descriptions(kind: type) -> dict[str, str]:
    """Field → the docstring that follows it in the class."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _limits_by_name(node: Any) -> Any:
    """pydantic leaves a limit that is checked after another function under its Python name."""
    if isinstance(node, list):
        return [_limits_by_name(item) for item in node]
    if isinstance(node, dict):
        return {LIMITS.get(key, key): _limits_by_name(value) for key, value in node.items()}
    return node


def _yaml(value: Any) -> str:
    """A default as it would be written in a file, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
