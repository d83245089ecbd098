"""How an item reads as text, and the fingerprint of that text."""

import difflib
import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from indexing.catalogue.columns import as_text, plain, without_blanks
from indexing.catalogue.contract import FINGERPRINT_TYPE
from indexing.errors import ConfigError


@dataclass(frozen=True)
class TextTemplate:
    """A parsed template such as `{title} — {creators}`: (literal, field) pairs and a closing literal.

    A literal belongs to the field after it (the closing one to the last field) and is left out with it. Between two
    fields it is also left out while the text before it is empty. So missing fields leave no stray separators.
    """

    parts: tuple[tuple[str, str], ...]
    closing: str

    def render(self, table: pa.Table) -> pa.Array:
        """string (num_rows,): blank strings, nulls and empty lists count as missing; lists are joined by ', '."""
        text = pa.repeat("", table.num_rows)
        for number, (literal, field) in enumerate(self.parts):
            value = _as_text(table[field], field)
            present = pc.not_equal(value, "")
            lead = literal if number == 0 else pc.if_else(pc.equal(text, ""), "", literal)
            tail = self.closing if number == len(self.parts) - 1 else ""
            addition = pc.binary_join_element_wise(lead, value, tail, "")
            text = pc.binary_join_element_wise(text, pc.if_else(present, addition, ""), "")
        return text


def _as_text(column: pa.ChunkedArray, field: str) -> pa.Array:
    """string (num_rows,), '' where a value is missing. Raises ConfigError for a type that cannot be text (a struct)."""
    try:
        array = plain(column.combine_chunks())
        texts = pc.binary_join(without_blanks(array), ", ") if pa.types.is_nested(array.type) else as_text(array)
        return pc.fill_null(pc.utf8_trim_whitespace(texts), "")
    except pa.ArrowNotImplementedError as error:
        raise ConfigError(
            f"catalogue.text: field '{field}' cannot be rendered as text, its type is {column.type}"
        ) from error


def parse_templates(
    text: Mapping[str, str], fields: Sequence[str], item_types: Sequence[str]
) -> dict[str, TextTemplate]:
    """item_type → template, `text['default']` where the type has none. Raises ConfigError naming what is unknown."""
    unknown = sorted(set(text) - set(item_types) - {"default"})
    if unknown:
        raise ConfigError(
            f"catalogue.text: '{unknown[0]}' is not an item type of any collection; "
            f"item types are {', '.join(sorted(item_types))}"
        )
    without = sorted(set(item_types) - set(text)) if "default" not in text else []
    if without:
        raise ConfigError(f"catalogue.text: no template for item type '{without[0]}' and no default")
    return {
        name: _parse_template(text.get(name, text.get("default", "")), name if name in text else "default", fields)
        for name in item_types
    }


def _parse_template(template: str, name: str, fields: Sequence[str]) -> TextTemplate:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"catalogue.text.{name}: {error} in '{template}'") from error
    parts: list[tuple[str, str]] = []
    literal = ""
    for text, field, _, _ in pieces:  # an escaped brace is a piece of its own
        literal += text
        if field is not None:
            parts.append((literal, field))
            literal = ""
    for _, field in parts:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"fields are {', '.join(fields)}"
            raise ConfigError(f"catalogue.text.{name}: the catalogue has no field '{field}'; {hint}")
    if not parts:
        raise ConfigError(f"catalogue.text.{name}: expected at least one {{field}}, got '{template}'")
    return TextTemplate(tuple(parts), closing=literal)


def render_texts(table: pa.Table, templates: Mapping[str, TextTemplate]) -> pa.Array:
    """string (num_rows,): each row's text by the template of its item type (all of which must be in `templates`)."""
    texts = pa.nulls(table.num_rows, pa.string())
    for template in sorted(set(templates.values()), key=repr):
        item_types = [name for name, other in templates.items() if other == template]
        mask = pc.is_in(table["item_type"], value_set=pa.array(item_types)).combine_chunks()
        texts = pc.replace_with_mask(texts, mask, template.render(table.filter(mask)))
    return texts


def row_fingerprints(texts: pa.ChunkedArray, encoder_fingerprint: str) -> pa.Array:
    """fixed_size_binary(16) (num_rows,): BLAKE2b-128 of encoder fingerprint and text. Same value, same vector."""
    base = hashlib.blake2b(encoder_fingerprint.encode() + b"\0", digest_size=16)
    digests = []
    for text in texts.to_pylist():
        row = base.copy()
        row.update(text.encode())
        digests.append(row.digest())
    return pa.array(digests, FINGERPRINT_TYPE)
