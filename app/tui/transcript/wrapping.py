"""Where lines break: at spaces, between CJK characters, which have none, and never inside of a grapheme cluster."""

import re
from itertools import pairwise

from rich.cells import cell_len

from dslite.app.terminal.graphemes import chop
from dslite.app.tui.transcript.source_text import SourceText

_WIDE = (
    "\u1100-\u115f\u2e80-\u303e\u3041-\u3098\u309b-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f"
    "\uff00-\uff60\uffe0-\uffe6"
)
_NOT_FIRST = "、。，．！？：；）」』】〉》”’…"
_EXTEND = "\u0300-\u036f\u1160-\u11ff\u200d\u20d0-\u20ff\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef"
# A wide character with its combining marks and the punctuation that must not begin a line, or a run of others; with the
# spaces behind it.
_PIECE = re.compile(rf"[{_WIDE}][{_EXTEND}]*[{_NOT_FIRST}]*\s*|[^\s{_WIDE}]+\s*|\s+")


def break_offsets(text: str, width: int) -> list[int]:
    """Character offsets at which a line without line ends must break to fit `width` cells."""
    if len(text) <= width and text.isascii():
        return []
    offsets: list[int] = []
    used = 0
    for match in _PIECE.finditer(text):
        piece = match.group()
        needed = cell_len(piece.rstrip())
        if used and used + needed > width:
            offsets.append(match.start())
            used = 0
        if needed > width:
            place = match.start()
            *full, last = chop(piece, width)
            for part in full:
                place += len(part)
                offsets.append(place)
            used = cell_len(last)
        else:
            used += cell_len(piece)
    return offsets


def longest_word(text: str) -> int:
    """Cells of the longest piece that is not broken."""
    return max((cell_len(match.group().rstrip()) for match in _PIECE.finditer(text)), default=0)


def wrap(source: SourceText, width: int) -> list[SourceText]:
    """Lines of at most `width` cells. The spaces at which a line breaks are dropped."""
    width = max(width, 2)
    lines: list[SourceText] = []
    for line in source.split_lines():
        pieces = line.divide(break_offsets(line.text.plain, width))
        for piece in pieces[:-1]:
            piece.text.rstrip()
            del piece.offsets[len(piece.text.plain) :]
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
