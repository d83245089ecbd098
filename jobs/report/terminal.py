"""What is printed for people: tables and lines, without the control characters that data may contain."""

import sys
import unicodedata
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNBOUNDED = 1_000_000
"""Width of a stream that is not a terminal: nothing is wrapped or cut there."""
MIN_SHORTENED = 12
"""Width that remains of a text that is cut in a narrow terminal."""
PADDING = 2
BIDI_CONTROLS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that make a terminal show the text after them in another order."""


def printable(text: str) -> str:
    """`text` in one line, without what would move the cursor, colour the terminal or reverse the order of letters."""
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    return "" if unicodedata.category(character) == "Cc" or character in BIDI_CONTROLS else character


class PlainConsole(Console):
    """Prints text as it is: no markup, no emoji codes, no colours by guess."""

    def __init__(self, *, stderr: bool = False, force_terminal: bool | None = None, width: int | None = None) -> None:
        stream = sys.stderr if stderr else sys.stdout
        if width is None and not stream.isatty():
            width = UNBOUNDED
        super().__init__(
            stderr=stderr, force_terminal=force_terminal, width=width, markup=False, emoji=False, highlight=False
        )

    def on_broken_pipe(self) -> None:
        """Rich would exit with 1 where the reader has closed the pipe; this re-raises BrokenPipeError."""
        raise


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], shortened: Collection[str] = ()) -> None:
    """One row a line on standard output. Only the `shortened` columns are cut, and only where a terminal is narrow."""
    table = Table(box=None, header_style="bold")
    needed = 0
    cells = [[printable(value) for value in row] for row in rows]
    for number, name in enumerate(header):
        width = max(cell_len(name), *(cell_len(row[number]) for row in cells)) if cells else cell_len(name)
        is_fixed = name not in shortened
        table.add_column(name, no_wrap=is_fixed, min_width=width if is_fixed else None)
        needed += (width if is_fixed else min(width, MIN_SHORTENED)) + PADDING
    for row in cells:
        table.add_row(*(Text(value, no_wrap=True, overflow="ellipsis") for value in row))
    console = PlainConsole()
    PlainConsole(width=max(console.width, needed)).print(table)
