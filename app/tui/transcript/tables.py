"""Tables: aligned columns that fit the width, cells wrapped where they must be."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from dslite.app.chat.markdown_blocks import Block
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.inline import inline_text
from dslite.app.tui.transcript.source_text import NO_SOURCE, DrawnLine, SourceText
from dslite.app.tui.transcript.wrapping import longest_word, wrap

Alignment = Literal["left", "centre", "right"]
_GAP = 2
_NARROWEST = 6
_CELL = re.compile(r"(?<!\\)\|")


def split_row(line: str) -> list[tuple[int, str]]:
    """The cells of a row, each with its offset in the line."""
    end = len(line.rstrip())
    if line[:end].endswith("|") and not line[:end].endswith("\\|"):
        end -= 1
    start = len(line) - len(line.lstrip())
    start += line.startswith("|", start)
    cells = []
    for separator in [*(match.start() for match in _CELL.finditer(line, start, end)), end]:
        inner = line[start:separator]
        cells.append((start + len(inner) - len(inner.lstrip()), inner.strip()))
        start = separator + 1
    return cells


@lru_cache(maxsize=4096)
def _cell(source: str, palette: Palette) -> SourceText:
    """A cell; its offsets count from the cell's beginning. A bar is escaped in it, also within code."""
    places = [place for place in range(len(source)) if not source.startswith("\\|", place)]
    return inline_text("".join(source[place] for place in places), places, palette)


def _row_cells(line: str, offset: int, count: int, palette: Palette) -> list[SourceText]:
    """The first `count` cells of a row, with offsets in the message."""
    cells = []
    for start, source in (split_row(line) + [(len(line), "")] * count)[:count]:
        cell = _cell(source, palette)
        base = offset + start
        cells.append(SourceText(cell.text.copy(), [NO_SOURCE if at < 0 else base + at for at in cell.offsets]))
    return cells


def table_lines(block: Block, width: int, palette: Palette) -> list[SourceText]:
    """A whole table: header, rule, rows."""
    count = len(split_row(block.lines[0]))
    rows = [
        _row_cells(line, offset, count, palette)
        for number, (line, offset) in enumerate(zip(block.lines, block.offsets, strict=True))
        if number != 1
    ]
    for cell in rows[0]:
        cell.text = Text(cell.text.plain, Style(bold=True), end="")
    widths = _widths(rows, width)
    marks = [mark for _, mark in split_row(block.lines[1])]
    sides = [_alignment(mark) for mark in (marks + [""] * count)[:count]]
    rule = (" " * _GAP).join("─" * size for size in widths)
    drawn = _row_lines(rows[0], widths, sides)
    drawn.append(SourceText(Text(rule, palette.muted, end=""), [NO_SOURCE] * len(rule)))
    return drawn + [line for row in rows[1:] for line in _row_lines(row, widths, sides)]


def open_table_lines(block: Block, width: int) -> list[DrawnLine]:
    """A table that still grows: rows as they are written, for the widths of its columns are not known yet.

    All rows are drawn with each piece of text, so those that need no work get none.
    """
    lines: list[DrawnLine] = []
    for row, start in zip(block.lines, block.offsets, strict=True):
        if len(row) <= width and row.isascii() and row.isprintable():
            lines.append(DrawnLine([Segment(row)], list(range(start, start + len(row)))))
        else:
            lines += (part.drawn() for part in wrap(SourceText.of_line(row, start), width))
    return lines


def _alignment(mark: str) -> Alignment:
    if not mark.endswith(":"):
        return "left"
    return "centre" if mark.startswith(":") else "right"


def _widths(rows: Sequence[Sequence[SourceText]], width: int) -> list[int]:
    """Cells for each column: what it needs, or a share of what there is.

    The widest columns become narrower first. Words are broken only where all of them together do not fit.
    """
    count = len(rows[0])
    room = max(width - _GAP * (count - 1), count * 2)
    columns = [[row[column].text.plain for row in rows] for column in range(count)]
    sizes = [min(max(*map(cell_len, column), 1), room) for column in columns]
    if sum(sizes) <= room:
        return sizes
    words = [max(map(longest_word, column)) for column in columns]
    for floors in (words, [min(word, _NARROWEST) for word in words], [2] * count):
        _shrink(sizes, floors, room)
    return sizes


def _shrink(sizes: list[int], floors: Sequence[int], room: int) -> None:
    """Take from the widest columns, down to their floors, until all fit."""
    while sum(sizes) > room:
        place = max(range(len(sizes)), key=lambda column: (sizes[column] > floors[column], sizes[column]))
        if sizes[place] <= floors[place]:
            return
        sizes[place] -= 1


def _row_lines(row: Sequence[SourceText], widths: Sequence[int], sides: Sequence[Alignment]) -> list[SourceText]:
    columns = [
        wrap(cell, size) if cell_len(cell.text.plain) > size else [cell] for cell, size in zip(row, widths, strict=True)
    ]
    lines: list[SourceText] = []
    for place in range(max(len(column) for column in columns)):
        line = SourceText(Text(end=""), [])
        for number, (column, size, side) in enumerate(zip(columns, widths, sides, strict=True)):
            part = column[place] if place < len(column) else SourceText(Text(), [])
            room = max(size - cell_len(part.text.plain), 0)
            before = {"left": 0, "centre": room // 2, "right": room}[side]
            line.decorate(" " * before)
            line.extend(part)
            if number < len(widths) - 1:
                line.decorate(" " * (_GAP + room - before))
        lines.append(line)
    return lines
