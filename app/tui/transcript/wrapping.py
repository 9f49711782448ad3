"""Where lines break: at spaces, and between CJK characters, which have none."""

import re
from itertools import pairwise

from rich.cells import cell_len, chop_cells
from rich.text import Text

_WIDE = "\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6"
_NOT_FIRST = "、。，．！？：；）」』】〉》”’…"
# A wide character with the marks that must not begin a line, or a run of others; with the spaces behind it.
_PIECE = re.compile(rf"[{_WIDE}][{_NOT_FIRST}]*\s*|[^\s{_WIDE}]+\s*|\s+")


def break_offsets(text: str, width: int) -> list[int]:
    """Character offsets at which a line without line ends must break to fit `width` cells."""
    if len(text) <= width and text.isascii():
        return []
    offsets: list[int] = []
    used = 0
    for piece in _PIECE.finditer(text):
        whole = piece.group()
        needed = cell_len(whole.rstrip())
        if used and used + needed > width:
            offsets.append(piece.start())
            used = 0
        if needed > width:
            place = piece.start()
            *full, last = chop_cells(whole, width)
            for part in full:
                place += len(part)
                offsets.append(place)
            used = cell_len(last)
        else:
            used += cell_len(whole)
    return offsets


def wrap(text: Text, width: int) -> list[Text]:
    """Lines of at most `width` cells."""
    width = max(width, 2)
    lines: list[Text] = []
    for line in text.split("\n", allow_blank=True) if "\n" in text.plain else [text]:
        offsets = break_offsets(line.plain, width)
        pieces = list(line.divide(offsets)) if offsets else [line]
        for piece in pieces[:-1]:
            piece.rstrip()
        lines += pieces
    return lines


def wrap_plain(text: str, width: int) -> list[str]:
    """`wrap` for text without styles."""
    width = max(width, 2)
    lines: list[str] = []
    for line in text.split("\n"):
        places = [0, *break_offsets(line, width), len(line)]
        pieces = [line[start:end] for start, end in pairwise(places)]
        lines += [*(piece.rstrip() for piece in pieces[:-1]), pieces[-1]]
    return lines


def chop(text: str, width: int) -> list[str]:
    """Pieces of code of at most `width` cells: broken anywhere, nothing dropped."""
    if len(text) <= width and text.isascii():
        return [text]
    return chop_cells(text, max(width, 2)) or [""]
