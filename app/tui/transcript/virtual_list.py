"""Pieces one below the other: at which line each begins, and the drawn lines of those that were looked at.

A height is an estimate until its piece is drawn. Lines are dropped again when many others have been drawn since.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate

from textual.strip import Strip

from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock

KEPT = 400  # pieces whose lines are kept


class VirtualList:
    """All render blocks of a conversation. `colour` is called with those that take long to highlight
    (`RenderBlock.wants_colours`)."""

    def __init__(self, make_artist: Callable[[], BlockRenderer], colour: Callable[[RenderBlock], None]) -> None:
        self.pieces: list[RenderBlock] = []
        self.artist: BlockRenderer | None = None
        self.layout = 0  # a number that no drawing out of date has
        self._make_artist, self._colour = make_artist, colour
        self._tops = [0]  # the first line of each piece, and the line below the last one
        self._kept: OrderedDict[RenderBlock, None] = OrderedDict()

    # Lines.

    @property
    def height(self) -> int:
        """Lines of all pieces."""
        return self._tops[-1]

    def top(self, piece: RenderBlock) -> int:
        """The first line of a piece."""
        return self._tops[self.pieces.index(piece)]

    def at(self, line: int) -> tuple[RenderBlock, int]:
        """The piece of a line, and which of its lines that is. Behind the end it is the last piece."""
        place = min(bisect_right(self._tops, line), len(self.pieces)) - 1
        return self.pieces[place], line - self._tops[place]

    def replace(self, start: int, count: int, pieces: Sequence[RenderBlock]) -> int:
        """Put pieces in place of `count` others; return the line from which on all may have moved."""
        self.pieces[start : start + count] = pieces
        self.measure(start)
        return self._tops[start]

    def measure(self, start: int = 0) -> None:
        """Heights have changed from a piece on."""
        del self._tops[start + 1 :]
        self._tops[start:] = accumulate((piece.height for piece in self.pieces[start:]), initial=self._tops[start])

    # Drawing.

    def draw_lines(self, first: int, last: int) -> bool:
        """Draw the pieces of some lines; return whether a height was not as estimated."""
        changed: int | None = None
        for place in range(bisect_right(self._tops, first) - 1, len(self.pieces)):
            if self._tops[place] >= last:
                break
            piece = self.pieces[place]
            before = piece.height
            if piece.drawn_for != self.layout or piece.strips is None:
                self.draw(piece)
                if piece.height != before and changed is None:
                    changed = place
        if changed is not None:
            self.measure(changed)
        return changed is not None

    def draw(self, piece: RenderBlock) -> list[Strip]:
        """Draw a piece, which may change its height."""
        if self.artist is None:
            self.artist = self._make_artist()
        strips = self.artist.draw(piece)
        piece.strips, piece.height, piece.drawn_for = strips, len(strips), self.layout
        self._kept[piece] = None
        self._kept.move_to_end(piece)
        if len(self._kept) > KEPT:
            oldest, _ = self._kept.popitem(last=False)
            oldest.strips = None
        if piece.wants_colours:
            self._colour(piece)
        return strips

    def strip(self, piece: RenderBlock, line: int) -> Strip:
        """One of a piece's lines, empty where it has fewer."""
        strips = piece.strips or self.draw(piece)
        return strips[line] if line < len(strips) else Strip([])

    def forget(self) -> None:
        """All drawings are out of date: the width has changed, or the colours."""
        self.artist = None
        self.layout += 1
        for piece in self.pieces:
            piece.strips, piece.drawn_for, piece.colours = None, -1, None
        self._kept.clear()
