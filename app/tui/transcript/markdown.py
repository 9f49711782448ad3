"""Blocks as lines of segments, for a width and a palette."""

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from dslite.app.chat.markdown_blocks import Block, Mark
from dslite.app.terminal.graphemes import chop
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.highlight import highlight
from dslite.app.tui.transcript.inline import inline_text
from dslite.app.tui.transcript.sanitize import inert
from dslite.app.tui.transcript.source_text import NO_SOURCE, DrawnLine, Line, SourceText, segments
from dslite.app.tui.transcript.tables import open_table_lines, table_lines
from dslite.app.tui.transcript.wrapping import wrap

NARROWEST = 8  # columns that a block has at least
_BULLETS = "•◦‣"
_BAR = "┃ "
_QUOTE = "▌ "
_QUOTE_PARTS = re.compile(f"({_QUOTE})")


def draw(block: Block, width: int, palette: Palette) -> list[DrawnLine]:
    """The lines of a block, `width` cells wide at most, without the gap before it."""
    first, rest = prefixes(block, width)
    inner = max(width - cell_len(rest), NARROWEST)
    lines = _leaf_lines(block, inner, palette) or [DrawnLine([], [])]
    return [prefixed(line, first if place == 0 else rest, palette) for place, line in enumerate(lines)]


def _leaf_lines(block: Block, width: int, palette: Palette) -> list[DrawnLine]:
    """The lines of a block without its marks."""
    if block.kind == "fence":
        return fence_lines(block, width, palette, _highlighted(block, palette))
    if block.kind == "code":
        return [line for number in range(len(block.lines)) for line in code_lines(block, number, None, width, palette)]
    if block.kind == "rule":
        return [DrawnLine([Segment("─" * width, palette.muted)], [NO_SOURCE] * width)]
    if block.kind == "table" and not block.closed:
        return open_table_lines(block, width)
    if block.kind == "table":
        texts = table_lines(block, width, palette)
    elif block.kind in ("math", "html"):
        lines = zip(block.lines, block.offsets, strict=True)
        texts = [part for line, start in lines for part in wrap(SourceText.of_line(line, start), width)]
    else:
        texts = wrap(_paragraph(block, palette), width)
    return [text.drawn() for text in texts]


def _paragraph(block: Block, palette: Palette) -> SourceText:
    offsets: list[int] = []
    for start, line in zip(block.offsets, block.lines, strict=True):
        offsets += range(start, start + len(line) + 1)  # with the line end, which is shown as a space
    text = inline_text(block.source, offsets, palette)
    if block.kind != "heading":
        return text
    style = Style(bold=True, underline=block.info == "h1")
    return SourceText(Text(text.text.plain, style, end=""), text.offsets)


# Marks of quotations and list items.


def prefixes(block: Block, width: int) -> tuple[str, str]:
    """What stands before the first line of a block, and before its others: of many marks, the innermost that fit."""
    pairs: list[tuple[str, str]] = []
    bullets = 0
    for place, mark in enumerate(block.marks):
        text = _mark_text(mark, bullets)
        bullets += mark.kind == "bullet"
        rest = _QUOTE if mark.kind == "quote" else " " * cell_len(text)
        pairs.append((text if place >= block.shared else rest, rest))
    while pairs and sum(cell_len(rest) for _, rest in pairs) > max(width - NARROWEST, 0):
        del pairs[0]
    return "".join(first for first, _ in pairs), "".join(rest for _, rest in pairs)


def _mark_text(mark: Mark, bullets: int) -> str:
    if mark.kind == "quote":
        return _QUOTE
    if mark.kind == "bullet":
        return f"{_BULLETS[bullets % len(_BULLETS)]} "
    box = {"open task": "☐ ", "done task": "☑ "}.get(mark.kind, "")
    return box if box and not mark.text[0].isdigit() else f"{mark.text} {box}"


def prefixed(line: DrawnLine, prefix: str, palette: Palette) -> DrawnLine:
    """A line behind the marks of its block."""
    if not prefix:
        return line
    return DrawnLine([*_prefix(prefix, palette), *line.segments], [NO_SOURCE] * len(prefix) + line.offsets)


def _prefix(prefix: str, palette: Palette) -> Line:
    parts = [part for part in _QUOTE_PARTS.split(prefix) if part]
    return [Segment(part, palette.bar if part == _QUOTE else palette.chosen) for part in parts]


def gap_line(block: Block, width: int, palette: Palette) -> Line:
    """The blank line before a block: the bar of a quotation goes through it."""
    marks = block.marks[: block.shared]
    if not any(mark.kind == "quote" for mark in marks):
        return []
    _, rest = prefixes(Block("rule", marks=marks, shared=len(marks)), width)
    return _prefix(rest.rstrip(), palette) if _QUOTE in rest else []


# Code.


def _highlighted(block: Block, palette: Palette) -> list[Text]:
    """The lines of a fence. An open one is coloured line by line: it is drawn again with every token."""
    if block.closed:
        return highlight(inert(block.source), block.language, palette)
    return [text for line in block.lines for text in highlight(inert(line), block.language, palette)]


def fence_head(block: Block, width: int, palette: Palette) -> Line:
    """The line above code: its language, and how to copy it."""
    name, hint = inert(block.language) or "code", f"copy: /copy {block.number}" if block.number else ""
    room = width - 2 - cell_len(name) - len(hint)
    if room < 1:
        return [Segment(_BAR, palette.bar), Segment(chop(name, max(width - 2, 2))[0], palette.muted)]
    return [Segment(_BAR, palette.bar), Segment(name + " " * room + hint, palette.muted)]


def fence_lines(block: Block, width: int, palette: Palette, texts: Iterable[Text] | None = None) -> list[DrawnLine]:
    """A code block with its bar, in the colours of `texts`, one for each line."""
    lines = [DrawnLine(fence_head(block, width, palette), [])]
    colours = texts if texts is not None else [None] * len(block.lines)
    for number, text in zip(range(len(block.lines)), colours, strict=False):
        lines += code_lines(block, number, text, width, palette)
    return lines


def code_lines(block: Block, number: int, text: Text | None, width: int, palette: Palette) -> list[DrawnLine]:
    """One line of code behind the bar, continued below where it is too long. `text`: the line with its colours."""
    source = SourceText.of_line(block.lines[number], block.offsets[number])
    if text is not None and len(text.plain) == len(source.offsets):
        source.text = text
    bar = Segment(_BAR, palette.bar)
    parts = source.divide(_ends(chop(source.text.plain, width - 2)))
    return [DrawnLine([bar, *segments(part.text)], [NO_SOURCE] * len(_BAR) + part.offsets) for part in parts]


def _ends(pieces: Sequence[str]) -> list[int]:
    """Where all pieces but the last end."""
    ends, place = [], 0
    for piece in pieces[:-1]:
        place += len(piece)
        ends.append(place)
    return ends
