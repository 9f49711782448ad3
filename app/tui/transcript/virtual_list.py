"""Blocks one below the other: at which line each begins, and the drawn lines of those that were looked at.

A height is an estimate until its block is drawn. Lines are dropped again when many others have been drawn since.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate

from textual.strip import Strip

from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock

KEPT = 400  # blocks whose lines are kept


class VirtualList:
    """All render blocks of a conversation. `colour` is called with those that take long to highlight
    (`RenderBlock.wants_colours`)."""

    def __init__(self, make_renderer: Callable[[], BlockRenderer], colour: Callable[[RenderBlock], None]) -> None:
        self.blocks: list[RenderBlock] = []
        self.renderer: BlockRenderer | None = None
        self.layout = 0  # a number that no drawing out of date has
        self._make_renderer, self._colour = make_renderer, colour
        self._tops = [0]  # the first line of each block, and the line below the last one
        self._kept: OrderedDict[RenderBlock, None] = OrderedDict()

    # Lines.

    @property
    def height(self) -> int:
        """Lines of all blocks."""
        return self._tops[-1]

    def top(self, block: RenderBlock) -> int:
        """The first line of a block."""
        return self._tops[self.blocks.index(block)]

    def at(self, line: int) -> tuple[RenderBlock, int]:
        """The block of a line, and which of its lines that is. Behind the end it is the last block."""
        place = min(bisect_right(self._tops, line), len(self.blocks)) - 1
        return self.blocks[place], line - self._tops[place]

    def replace(self, start: int, count: int, blocks: Sequence[RenderBlock]) -> int:
        """Put blocks in place of `count` others; return the line from which on all may have moved."""
        self.blocks[start : start + count] = blocks
        self.measure(start)
        return self._tops[start]

    def measure(self, start: int = 0) -> None:
        """Heights have changed from a block on."""
        del self._tops[start + 1 :]
        self._tops[start:] = accumulate((block.height for block in self.blocks[start:]), initial=self._tops[start])

    # Drawing.

    def draw_lines(self, first: int, last: int) -> bool:
        """Draw the blocks of some lines; return whether a height was not as estimated."""
        changed: int | None = None
        for place in range(bisect_right(self._tops, first) - 1, len(self.blocks)):
            if self._tops[place] >= last:
                break
            block = self.blocks[place]
            before = block.height
            if block.drawn_for != self.layout or block.strips is None:
                self.draw(block)
                if block.height != before and changed is None:
                    changed = place
        if changed is not None:
            self.measure(changed)
        return changed is not None

    def draw(self, block: RenderBlock) -> list[Strip]:
        """Draw a block, which may change its height."""
        if self.renderer is None:
            self.renderer = self._make_renderer()
        strips = self.renderer.draw(block)
        block.strips, block.height, block.drawn_for = strips, len(strips), self.layout
        self._kept[block] = None
        self._kept.move_to_end(block)
        if len(self._kept) > KEPT:
            oldest, _ = self._kept.popitem(last=False)
            oldest.strips = None
        if block.wants_colours:
            self._colour(block)
        return strips

    def strip(self, block: RenderBlock, line: int) -> Strip:
        """One of a block's lines, empty where it has fewer."""
        strips = block.strips or self.draw(block)
        return strips[line] if line < len(strips) else Strip([])

    def forget(self) -> None:
        """All drawings are out of date: the width has changed, or the colours."""
        self.renderer = None
        self.layout += 1
        for block in self.blocks:
            block.strips, block.drawn_for, block.colours = None, -1, None
        self._kept.clear()
