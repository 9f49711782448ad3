"""Characters of a selection, and the cells that show them."""

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip


def slice_of(span: tuple[int, int], margin: int) -> tuple[int, int]:
    """A span of a line without the empty columns at its left; -1 is the line's end."""
    start, end = span
    return max(start - margin, 0), -1 if end < 0 else max(end - margin, 0)


def marked(strip: Strip, start: int, end: int, style: Style) -> Strip:
    """A strip with the characters from `start` to `end` (-1: the last) in a style."""
    text = strip.text
    first = cell_len(text[:start])
    last = cell_len(text if end < 0 else text[:end])
    if last <= first:
        return strip
    before, middle, after = strip.crop(0, first), strip.crop(first, last), strip.crop(last, strip.cell_length)
    restyled = Strip([segment._replace(style=(segment.style or Style()) + style) for segment in middle])
    return Strip.join([before, restyled, after])
