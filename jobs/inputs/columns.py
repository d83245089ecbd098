"""Which column of a file is which of the contract: names are mapped, texts split, columns taken from folder names."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from indexing.catalogue.columns import is_text, plain_type, split_texts
from indexing.errors import DataError
from jobs.config.schema import CatalogueConfig
from jobs.inputs.text_files import LINE, REASON, ROW

INTERNAL = {ROW: "source_row", REASON: "reason", LINE: "text"}
"""Columns that a converted file has in addition to its own → their names in the stages."""


@dataclass(frozen=True)
class ColumnRule:
    """Where a column comes from."""

    name: str
    """In the file."""
    split: str | None = None
    """The separator of the texts of a list."""


@dataclass(frozen=True)
class Columns:
    """How the columns of one file are read; plain data, so that Ray can ship it."""

    rules: Mapping[str, ColumnRule] = field(default_factory=dict)
    """By the contract's name."""
    constants: Mapping[str, str | None] = field(default_factory=dict)
    """Column → its value in all rows, where the file has no such column itself."""


def column_rules(catalogue: CatalogueConfig) -> dict[str, ColumnRule]:
    """`catalogue.columns`, by the contract's name."""
    return {
        name: ColumnRule(rule) if isinstance(rule, str) else ColumnRule(rule["from"], rule.get("split"))
        for name, rule in catalogue.columns.items()
    }


def arrange(table: pa.Table, columns: Columns, source: str) -> pa.Table:
    """`table` with constants, and with the columns that rules name under their new names, after those that none takes.

    Raises DataError, naming `source`, for a repeated column, and for one to be split that is not text.
    """
    names = table.column_names
    if len(set(names)) < len(names):
        repeated = min(name for name in names if names.count(name) > 1)
        raise DataError(f"{source}: expected each column once, got {repeated!r} twice")
    for name, value in columns.constants.items():
        if name not in names:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    if not columns.rules:
        return table
    taken = {rule.name for rule in columns.rules.values()} | set(columns.rules)
    arranged = {name: table[name] for name in table.column_names if name not in taken}
    for name, rule in columns.rules.items():
        if rule.name in table.column_names:
            arranged[name] = read_column(table[rule.name], rule, f"{source}: catalogue.columns.{name}")
    return pa.table(arranged)


def read_column(column: pa.ChunkedArray, rule: ColumnRule, setting: str) -> pa.ChunkedArray:
    if rule.split is None or pa.types.is_null(column.type):
        return column
    if not is_text(plain_type(column.type)):
        raise DataError(f"{setting}.split: expected texts in column {rule.name}, got {column.type}")
    return split_texts(column, rule.split)
