"""What Ctrl+F looks for: its places in the messages on screen, and the cells of a block that show them."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dslite.app.chat.find import find_spans
from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem


@dataclass(frozen=True)
class Match:
    """A found place: its offsets in the text of an item."""

    item: TranscriptItem
    start: int
    end: int


@dataclass(frozen=True)
class LineMark:
    """Characters of a line that show a found place; `current`: it is the one that is counted."""

    start: int
    end: int
    current: bool


class Find:
    """The matches of a text in order, one of which is the current one while there are some."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matches: list[Match] = []
        self._place = 0
        self._marks: dict[RenderBlock, tuple[object, dict[int, list[LineMark]]]] = {}

    @property
    def current(self) -> Match | None:
        return self.matches[self._place] if self.matches else None

    @property
    def count_text(self) -> str:
        """`1 of 7`."""
        return f"{self._place + 1} of {len(self.matches):,}" if self.matches else "not found"

    def search(self, items: Sequence[TranscriptItem]) -> None:
        """Look for the text anew. The current match stays the current one where it is still there."""
        before = self.current
        self.matches = [
            Match(item, start, end)
            for item in items
            if item.speaker != "notice"
            for start, end in find_spans(self.text, item.text)
        ]
        if before is not None:
            self.go_to(before.item, before.start)
        self._marks.clear()

    def go_to(self, item: TranscriptItem, start: int = 0) -> None:
        """Make the first match at or behind an offset of an item the current one; the first of all without one."""
        places = (
            place for place, match in enumerate(self.matches) if match.item.key == item.key and match.start >= start
        )
        self._place = next(places, 0)
        self._marks.clear()

    def step(self, direction: int) -> None:
        """The next match (1) or the one before (-1); behind the last comes the first."""
        if self.matches:
            self._place = (self._place + direction) % len(self.matches)
        self._marks.clear()

    def line_marks(self, block: RenderBlock, line: int, renderer: BlockRenderer) -> Sequence[LineMark]:
        """What to mark in one of the drawn lines of a block."""
        drawn = block.strips
        known = self._marks.get(block)
        if known is None or known[0] is not drawn:
            known = self._marks[block] = drawn, self._of_block(block, renderer)
        return known[1].get(line, ())

    def _of_block(self, block: RenderBlock, renderer: BlockRenderer) -> dict[int, list[LineMark]]:
        matches = [match for match in self.matches if match.item is block.item]
        if not matches or block.kind not in ("plain", "block"):
            return {}
        starts = [match.start for match in matches]
        lines = enumerate(renderer.source_offsets(block))
        return {number: found for number, offsets in lines if (found := [*self._of_line(offsets, matches, starts)])}

    def _of_line(self, offsets: Sequence[int], matches: Sequence[Match], starts: Sequence[int]) -> Iterator[LineMark]:
        """Runs of neighbouring characters that belong to one match each. `starts` are those of the matches."""
        start, last = 0, None
        for place, offset in enumerate([*offsets, -1]):
            before = bisect_left(starts, offset + 1) - 1
            match = matches[before] if offset >= 0 and before >= 0 and offset < matches[before].end else None
            if match is not last:
                if last is not None:
                    yield LineMark(start, place, last is self.current)
                start, last = place, match


def block_at(item: TranscriptItem, offset: int) -> RenderBlock | None:
    """The block that shows an offset of an item's text."""
    for block in item.blocks:
        if block.kind == "plain" or (block.block is not None and block.block.end > offset):
            return block
    return item.blocks[-1] if item.blocks else None
