"""Plain tables: aligned columns of text, the same on a terminal and in a pipe."""

import unicodedata
from collections.abc import Sequence

from dslite.app.terminal.console import visible


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under their heads; nothing at all where there are none."""
    if not rows:
        return
    lines = [list(heads), *([_one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell + " " * (width - cell_width(cell)) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def cell_width(text: str) -> int:
    """Columns that a text takes in a terminal: wide characters two, marks on others none."""
    return sum(_character_width(char) for char in text) if not text.isascii() else len(text)


def _character_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _one_line(text: str) -> str:
    return " ".join(visible(text).split())
