"""The conversation on screen: one scrolling widget that draws what is visible.

It holds no widget for a message. Lines are asked for one at a time (Textual's line API); pieces off screen have only
an estimated height, and their lines are dropped again when many others have been drawn since.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from dslite.app.tui.highlight import highlight
from dslite.app.tui.palette import Palette
from dslite.app.tui.pieces import Artist, Entry, Piece, estimate, pieces_of
from dslite.app.tui.selecting import marked, slice_of
from dslite.app.tui.text import inert

MOST_COLUMNS = 110  # longer lines are hard to read
_KEPT = 400  # pieces whose lines are kept
_MARGIN = 2  # the mark of the chosen message, and a space


class Transcript(ScrollView, can_focus=True):
    """Messages from the top, the newest at the bottom."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "choose(-1)", "Message above", show=False),
        Binding("down", "choose(1)", "Message below", show=False),
        Binding("left", "walk(-1)", "Branch before", show=False),
        Binding("right", "walk(1)", "Branch after", show=False),
    ]

    @dataclass
    class Walk(Message):
        """Left or Right on a message: show the branch `step` further."""

        key: int
        step: int

    @dataclass
    class Leave(Message):
        """Down behind the last message, or a printable key: back to the prompt."""

        text: str = ""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.entries: list[Entry] = []
        self.chosen: Entry | None = None
        self._pieces: list[Piece] = []
        self._tops: list[int] = [0]
        self._layout_number = 0
        self._artist: Artist | None = None
        self._kept: OrderedDict[Piece, None] = OrderedDict()
        self.show_horizontal_scrollbar = False

    # Content.

    def show(self, entries: Sequence[Entry], *, to_end: bool = True) -> None:
        """Replace everything."""
        self.entries = list(entries)
        self.chosen = None
        self._kept.clear()
        self._pieces = [piece for entry in self.entries for piece in self._fresh(entry)]
        self._measure()
        self._place(to_end=to_end)

    def add(self, entry: Entry) -> None:
        """Put an entry at the end and show it."""
        self.entries.append(entry)
        self._pieces += self._fresh(entry)
        self._measure()
        self._place(to_end=True)

    def add_before_last(self, entry: Entry) -> None:
        """Put an entry above the last one, which still grows."""
        follows = self.at_end
        last = self.entries[-1]
        self.entries.insert(-1, entry)
        place = len(self._pieces) - len(last.pieces)
        self._pieces[place:place] = self._fresh(entry)
        self._measure()
        self._place(to_end=follows)

    def entry(self, key: int) -> Entry | None:
        """The entry of a message."""
        return next((entry for entry in self.entries if entry.key == key), None)

    def remove_entry(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self._pieces = [piece for piece in self._pieces if piece.entry is not entry]
        self._measure()
        self._place(to_end=self.at_end)

    def drop_behind(self, entry: Entry) -> None:
        """Remove what stands below an entry."""
        for other in self.entries[self.entries.index(entry) + 1 :]:
            self.remove_entry(other)

    def extend(self, entry: Entry, text: str) -> None:
        """Text that an answer at the end grows by."""
        assert entry is self.entries[-1]
        assert entry.splitter is not None
        entry.text += text
        entry.splitter.feed(inert(text))
        self._renew_tail(entry)

    def finish(self, entry: Entry) -> None:
        """An answer is whole: draw it once more, as a finished one."""
        entry.growing = False
        if entry.splitter is not None:
            entry.splitter.finish()
        self._renew_tail(entry)

    def redraw_entry(self, entry: Entry) -> None:
        """An entry's head, text or note has changed."""
        follows = self.at_end
        start = next(place for place, piece in enumerate(self._pieces) if piece.entry is entry)
        end = start + sum(piece.entry is entry for piece in self._pieces[start:])
        self._pieces[start:end] = self._fresh(entry)
        self._measure()
        self._place(to_end=follows)

    def _fresh(self, entry: Entry) -> list[Piece]:
        entry.pieces = pieces_of(entry)
        for piece in entry.pieces:
            piece.height = estimate(piece, self._text_width)
        return entry.pieces

    def _renew_tail(self, entry: Entry) -> None:
        """Bring the pieces of the last entry in line with its blocks; only changed ones are drawn again."""
        assert entry.splitter is not None
        follows = self.at_end
        blocks = entry.splitter.blocks
        first = entry.splitter.first_changed
        base = len(self._pieces) - len(entry.pieces)
        kept = entry.pieces[: 1 + first]
        olds = {id(piece.block): piece for piece in entry.pieces[1 + first :] if piece.block}
        changed = [olds.get(id(block)) or Piece(entry, block) for block in blocks[first:]]
        if entry.note:
            changed.append(Piece(entry, kind="note"))
        before = _lines(self._pieces[base + len(kept) :])
        entry.pieces = kept + changed
        self._pieces[base:] = entry.pieces
        for piece in changed:
            self._draw(piece)
        top = self._tops[base + len(kept)]
        self._measure(base + len(kept))
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, _lines(changed), strict=False)))
        self._place(to_end=follows, from_line=top + same)

    # Layout.

    @property
    def at_end(self) -> bool:
        return self.scroll_offset.y >= self.max_scroll_y - 1

    @property
    def _text_width(self) -> int:
        return max(min(self.scrollable_content_region.width or self.size.width, MOST_COLUMNS) - _MARGIN - 1, 10)

    @property
    def left(self) -> int:
        """Empty columns that put the text into the middle of a wide screen."""
        return max((self.scrollable_content_region.width - MOST_COLUMNS) // 2, 0)

    def restyle(self) -> None:
        """The theme has changed."""
        self._artist = None
        self._forget_drawings()
        self._place(to_end=self.at_end)

    def _forget_drawings(self) -> None:
        self._layout_number += 1
        for piece in self._pieces:
            piece.strips, piece.drawn_for, piece.colours = None, -1, None
        self._kept.clear()

    def on_resize(self) -> None:
        if self._artist is not None and self._artist.width == self._text_width:
            self._place(to_end=self.at_end)
            return
        follows = self._follows_before_resize
        anchor = self._anchor()
        self._artist = None
        self._forget_drawings()
        for piece in self._pieces:
            piece.height = estimate(piece, self._text_width)
        self._measure()
        self._place(to_end=follows, anchor=anchor)

    _follows_before_resize = True

    def _measure(self, start: int = 0) -> None:
        """The first line of every piece from `start` on."""
        del self._tops[start + 1 :]
        heights = (piece.height for piece in self._pieces[start:])
        self._tops[start:] = accumulate(heights, initial=self._tops[start] if start else 0)

    def _anchor(self) -> tuple[Piece, int] | None:
        """The piece at the top of the screen and how far it is scrolled."""
        if not self._pieces:
            return None
        y = self.scroll_offset.y
        place = min(max(bisect_right(self._tops, y) - 1, 0), len(self._pieces) - 1)
        return self._pieces[place], y - self._tops[place]

    def _place(self, *, to_end: bool, anchor: tuple[Piece, int] | None = None, from_line: int | None = None) -> None:
        """Draw what is in view, correct the heights that were estimates, and scroll so that it stays in view."""
        height = self.size.height
        if not self.is_attached or not height:
            return
        anchor = anchor or self._anchor()
        for _ in range(8):
            y = self._wanted_scroll(to_end, anchor)
            if not self._draw_lines(y, y + height):
                break
        y = self._wanted_scroll(to_end, anchor)
        before, whole = self.virtual_size, Size(self.size.width, self._tops[-1])
        if whole != before:  # else the scroll bar would be drawn again, which costs more than a line of text
            # Not by assignment, which would lay out the whole screen anew: nothing but the scroll bar has changed.
            self.set_reactive(Transcript.virtual_size, whole)
            self._scroll_update(whole)
        self._follows_before_resize = to_end
        if y != self.scroll_offset.y:
            self.scroll_to(y=y, animate=False, force=True, immediate=True)
        elif from_line is not None and before.height <= whole.height:
            self.refresh(Region(0, from_line - y, whole.width, max(whole.height - from_line, 1)))
        else:
            self.refresh()

    def _wanted_scroll(self, to_end: bool, anchor: tuple[Piece, int] | None) -> int:
        most = max(self._tops[-1] - self.size.height, 0)
        if to_end:
            return most
        if anchor is None or anchor[0] not in self._pieces:
            return min(self.scroll_offset.y, most)
        return min(self._tops[self._pieces.index(anchor[0])] + anchor[1], most)

    def _draw_lines(self, first: int, last: int) -> bool:
        """Draw the pieces of some lines; return whether a height was not as estimated."""
        place = max(bisect_right(self._tops, first) - 1, 0)
        changed: int | None = None
        for index in range(place, len(self._pieces)):
            if self._tops[index] >= last:
                break
            piece = self._pieces[index]
            before = piece.height
            if piece.drawn_for != self._layout_number or piece.strips is None:
                self._draw(piece)
                if piece.height != before and changed is None:
                    changed = index
        if changed is not None:
            self._measure(changed)
        return changed is not None

    def _draw(self, piece: Piece) -> list[Strip]:
        if self._artist is None:
            palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
            self._artist = Artist(self._text_width, palette)
        strips = self._artist.draw(piece)
        piece.strips, piece.height, piece.drawn_for = strips, len(strips), self._layout_number
        self._kept[piece] = None
        self._kept.move_to_end(piece)
        if len(self._kept) > _KEPT:
            oldest, _ = self._kept.popitem(last=False)
            oldest.strips = None
        if piece.wants_colours:
            self._colour(piece)
        return strips

    def _colour(self, piece: Piece) -> None:
        """Make the colours of a long code block in a thread: it may take a tenth of a second."""
        block, number = piece.block, self._layout_number
        assert block is not None
        assert self._artist is not None
        palette = self._artist.palette

        def work() -> None:
            texts = highlight(block.source, block.language, palette)
            self.app.call_later(done, texts)

        def done(texts: list) -> None:  # type: ignore[type-arg]
            if self._layout_number == number:
                piece.colours = texts
                self._draw(piece)
                self.refresh()

        self.run_worker(work, thread=True, group="colours", exit_on_error=False)

    # Lines.

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width or self.size.width
        line = self.scroll_offset.y + y
        if self._artist is None or line >= self._tops[-1] or not self._pieces:
            return Strip.blank(width, self.rich_style)
        palette = self._artist.palette
        index = bisect_right(self._tops, line) - 1
        piece = self._pieces[index]
        strips = piece.strips or self._draw(piece)
        offset = line - self._tops[index]
        strip = strips[offset] if offset < len(strips) else Strip([])
        if (selection := self.text_selection) is not None and (span := selection.get_span(line)) is not None:
            style = self.screen.get_component_rich_style("screen--selection")
            strip = marked(strip, *slice_of(span, self.left + _MARGIN), style)
        mark = "▌ " if piece.entry is self.chosen and self.has_focus else "  "
        head = [Segment(" " * self.left, palette.base), Segment(mark, palette.base + palette.chosen)]
        return Strip([*head, *strip]).adjust_cell_length(width, palette.base).apply_offsets(0, line)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        start = selection.start.y if selection.start else 0
        end = selection.end.y if selection.end else self._tops[-1] - 1
        lines: list[str] = []
        for line in range(start, min(end, self._tops[-1] - 1) + 1):
            span = selection.get_span(line)
            if span is not None:
                first, last = slice_of(span, self.left + _MARGIN)
                text = self.line_text(line)
                lines.append(text[first : None if last < 0 else last].rstrip())
        return "\n".join(lines), "\n"

    def line_text(self, line: int) -> str:
        """The text of a line of the transcript."""
        index = bisect_right(self._tops, line) - 1
        piece = self._pieces[index]
        strips = piece.strips or self._draw(piece)
        offset = line - self._tops[index]
        return strips[offset].text if offset < len(strips) else ""

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    # Choosing a message.

    def choose(self, entry: Entry | None) -> None:
        """Mark a message and bring its head into view."""
        self.chosen = entry
        if entry is not None and entry.pieces:
            top = self._tops[self._pieces.index(entry.pieces[0])]
            bottom = top + sum(piece.height for piece in entry.pieces)
            y, height = self.scroll_offset.y, self.size.height
            if top < y or top >= y + height:
                self._show_line(top)
            elif bottom > y + height and top > y:
                self._show_line(min(top, bottom - height))
        self.refresh()

    def _show_line(self, line: int) -> None:
        place = min(max(bisect_right(self._tops, line) - 1, 0), len(self._pieces) - 1)
        self._place(to_end=False, anchor=(self._pieces[place], line - self._tops[place]))

    @property
    def messages(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.speaker in ("user", "assistant")]

    def action_choose(self, step: int) -> None:
        messages = self.messages
        if not messages:
            return
        place = messages.index(self.chosen) + step if self.chosen in messages else len(messages) - 1
        if place >= len(messages):
            self.post_message(self.Leave())
            return
        self.choose(messages[max(place, 0)])

    def action_walk(self, step: int) -> None:
        if self.chosen is not None:
            self.post_message(self.Walk(self.chosen.key, step))

    def on_focus(self) -> None:
        if self.chosen is None and self.messages:
            self.choose(self.messages[-1])
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_key(self, event: events.Key) -> None:
        if event.character and event.is_printable:
            event.stop()
            self.post_message(self.Leave(event.character))

    def on_click(self, event: events.Click) -> None:
        line = self.scroll_offset.y + event.y
        if line < self._tops[-1]:
            entry = self._pieces[bisect_right(self._tops, line) - 1].entry
            if entry.speaker in ("user", "assistant"):
                self.choose(entry)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self.is_attached and self._draw_lines(round(new_value), round(new_value) + self.size.height):
            self.call_after_refresh(self._settle)

    def _settle(self) -> None:
        """What came into view was not as high as estimated."""
        self._place(to_end=self.at_end)

    def iter_drawn(self) -> Iterable[Piece]:
        """Pieces whose lines are in memory."""
        return (piece for piece in self._pieces if piece.strips is not None)


def _lines(pieces: Iterable[Piece]) -> list[Strip]:
    """The lines of pieces, as they were last drawn."""
    return [strip for piece in pieces for strip in piece.strips or ()]
