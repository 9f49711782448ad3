"""Tables: aligned columns that fit the width, cells wrapped where they must be."""

import re
from collections.abc import Sequence
from functools import lru_cache

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.inline import inline_text
from dslite.app.tui.transcript.wrapping import wrap, wrap_plain

_GAP = 2
_NARROWEST = 6
_CELL = re.compile(r"(?<!\\)\|")


def cells(line: str) -> list[str]:
    """The cells of a row."""
    inner = line.strip()
    inner = inner.removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in _CELL.split(inner)]


@lru_cache(maxsize=4096)
def _cell(source: str, palette: Palette) -> Text:
    return inline_text(source, palette)


def draw_table(lines: Sequence[str], width: int, palette: Palette) -> list[Text]:
    """A whole table: header, rule, rows."""
    header, rule = cells(lines[0]), cells(lines[1])
    rows = [[_cell(cell, palette) for cell in _fitted(cells(line), len(header))] for line in lines[2:]]
    head = [_cell(cell, palette).copy() for cell in header]
    for cell in head:
        cell.stylize(Style(bold=True))
    widths = _widths([head, *rows], width)
    right = [mark.endswith(":") and not mark.startswith(":") for mark in _fitted(rule, len(header))]
    drawn = _row(head, widths, right)
    drawn.append(Text((" " * _GAP).join("─" * size for size in widths), palette.muted, end=""))
    for row in rows:
        drawn += _row(row, widths, right)
    return drawn


def draw_open_table(lines: Sequence[str], width: int) -> list[Text]:
    """A table that still grows: rows as they are written, for the widths of its columns are not known yet."""
    return [Text(piece, end="") for line in lines for piece in wrap_plain(line, width)]


def _fitted(row: list[str], count: int) -> list[str]:
    return (row + [""] * count)[:count]


def _widths(rows: Sequence[Sequence[Text]], width: int) -> list[int]:
    """Cells for each column: what it needs, or a share of what there is."""
    needed = [max(max(cell_len(row[column].plain) for row in rows), 1) for column in range(len(rows[0]))]
    room = max(width - _GAP * (len(needed) - 1), len(needed) * 2)
    while sum(needed) > room:
        widest = max(needed)
        if widest <= _NARROWEST:
            share = max(room // len(needed), 2)
            return [min(size, share) for size in needed]
        next_size = max([size for size in needed if size < widest], default=_NARROWEST)
        count = needed.count(widest)
        cut = min(widest - max(next_size, _NARROWEST), -(-(sum(needed) - room) // count))
        needed = [size - max(cut, 1) if size == widest else size for size in needed]
    return needed


def _row(row: Sequence[Text], widths: Sequence[int], right: Sequence[bool]) -> list[Text]:
    columns = [
        wrap(cell, size) if cell_len(cell.plain) > size else [cell] for cell, size in zip(row, widths, strict=True)
    ]
    lines: list[Text] = []
    for place in range(max(len(column) for column in columns)):
        line = Text(end="")
        for number, (column, size) in enumerate(zip(columns, widths, strict=True)):
            part = column[place] if place < len(column) else Text()
            room = max(size - cell_len(part.plain), 0)
            line.append(" " * room if right[number] else "")
            line.append_text(part)
            if number < len(widths) - 1:
                line.append(" " * (_GAP + (0 if right[number] else room)))
        lines.append(line)
    return lines
