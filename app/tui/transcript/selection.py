"""Selected text: the cells that show it, and the source that is copied.

The source between two ends is a slice of the message: lines that were wrapped are whole again, and what the screen adds
(gutters, indentation, heads of code blocks) is not in it.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem
from dslite.app.tui.transcript.source_text import source_length


def slice_of(span: tuple[int, int], margin: int) -> tuple[int, int]:
    """A span of a line without the empty columns at its left; -1 is the line's end."""
    start, end = span
    return max(start - margin, 0), -1 if end < 0 else max(end - margin, 0)


def marked(strip: Strip, start: int, end: int, style: Style) -> Strip:
    """A strip with the characters from `start` to `end` (-1: the last) in the colours of a style."""
    # Without the attributes that change colours in a terminal.
    colours = Style(color=style.color, bgcolor=style.bgcolor, bold=False, dim=False, reverse=False)
    return restyled(strip, start, end, colours)


def restyled(strip: Strip, start: int, end: int, style: Style) -> Strip:
    """A strip with a style on top of the characters from `start` to `end` (-1: the last)."""
    text = strip.text
    first = cell_len(text[:start])
    last = cell_len(text if end < 0 else text[:end])
    if last <= first:
        return strip
    before, middle, after = strip.crop(0, first), strip.crop(first, last), strip.crop(last, strip.cell_length)
    return Strip.join([before, Strip([part._replace(style=(part.style or Style()) + style) for part in middle]), after])


def start_offset(renderer: BlockRenderer, block: RenderBlock, line: int, column: int) -> int:
    """Where a selection begins in the item's text that begins at a character of one of a block's lines."""
    if block.kind in ("head", "reasoning"):
        return 0
    lines = renderer.source_offsets(block)
    if block.block is not None and _is_before(lines, line, column, block):
        return block.block.start
    rest = chain(lines[line][column:] if line < len(lines) else (), *lines[line + 1 :])
    return next((offset for offset in rest if offset >= 0), _end_of(block))


def end_offset(renderer: BlockRenderer, block: RenderBlock, line: int, column: int) -> int:
    """Where a selection ends in the item's text that ends before a character of one of a block's lines."""
    if block.kind in ("head", "reasoning"):
        return 0
    lines = renderer.source_offsets(block)
    places = (
        (number, place) for number in range(min(line, len(lines) - 1), -1, -1) for place in _backwards(lines[number])
    )
    last = next(((number, place) for number, place in places if number < line or place < column), None)
    if last is None:
        return block.block.start if block.block is not None else 0
    if _is_behind(lines, line, column, block):
        return _end_of(block)
    number, place = last
    shown = (block.strips or renderer.draw(block))[number].text[place]
    offset = lines[number][place]
    return offset + source_length(block.item.text, offset, shown)


def _backwards(offsets: Sequence[int]) -> Iterator[int]:
    """The characters of a line that are in the source, the last first."""
    return (place for place in range(len(offsets) - 1, -1, -1) if offsets[place] >= 0)


def line_of(renderer: BlockRenderer, block: RenderBlock, offset: int, line: int) -> int:
    """The line of a block that shows an offset of the item's text; `line` where the block shows no source."""
    lines = renderer.source_offsets(block)
    return next((number for number, offsets in enumerate(lines) if max(offsets, default=-1) >= offset), line)


def _end_of(block: RenderBlock) -> int:
    return block.block.end if block.block is not None else len(block.item.text)


def _is_before(lines: Sequence[Sequence[int]], line: int, column: int, block: RenderBlock) -> bool:
    """Whether a place is left of a block's first character of text or above it: its Markdown is selected, too."""
    first = next((place for place, offsets in enumerate(lines) if any(offset >= 0 for offset in offsets)), None)
    if first is None or line < first:
        return True
    if line > first or (block.block is not None and block.block.kind == "fence"):
        return False
    return column < next(place for place, offset in enumerate(lines[first]) if offset >= 0)


def _is_behind(lines: Sequence[Sequence[int]], line: int, column: int, block: RenderBlock) -> bool:
    """Whether a place is right of a block's last character of text: the Markdown that closes it is selected, too."""
    if block.block is None or block.block.kind == "fence" or line < len(lines) - 1:
        return False
    return line >= len(lines) or column > len(lines[line])


def source_between(
    items: Sequence[TranscriptItem], first: tuple[TranscriptItem, int], last: tuple[TranscriptItem, int]
) -> str:
    """The text of messages from an offset in one to an offset in another, with blank lines between messages."""
    texts = []
    for item in items[items.index(first[0]) : items.index(last[0]) + 1]:
        start = first[1] if item is first[0] else 0
        end = last[1] if item is last[0] else len(item.text)
        texts.append(item.text[start : max(end, start)].rstrip(" "))
    return "\n\n".join(text.strip("\r\n") for text in texts if text.strip())
