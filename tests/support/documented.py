"""The tables of docs/data-model.md, read for comparison with the code."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "data-model.md"


def columns_of(
    section: str, *, where: Mapping[str, str] | None = None, names: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """(name, type) of each row of the section's first table; `where` and `names` choose rows."""
    rows = _rows(_section(section))
    wanted = [row for row in rows if all(row[key] == value for key, value in (where or {}).items())]
    return [(row["column"], row["type"]) for row in wanted if names is None or row["column"] in names]


def field_names_of(record: str) -> list[str]:
    """The names in the table whose first column is `field of RECORD`, in their order."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index(f"| field of `{record}` |") :].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()[2:]]
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def _section(title: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    return re.split(r"^#+ ", text.partition(f"### {title}\n")[2], flags=re.MULTILINE)[0]


def _rows(text: str) -> list[dict[str, str]]:
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    names = [name.strip() for name in head.strip("|").split("|")]
    return [dict(zip(names, (cell.strip(" `") for cell in line.strip("|").split("|")), strict=False)) for line in lines]
