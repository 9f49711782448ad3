"""A widget that scrolls a column of pieces and draws what is visible.

It holds no widget for a message: lines are asked for one at a time (Textual's line API). What the user looks at stays
in its place while heights turn out to be other than estimated, and while the text below still grows.
"""

from rich.segment import Segment
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem, estimate
from dslite.app.tui.transcript.highlight import highlight
from dslite.app.tui.transcript.selection import marked, slice_of
from dslite.app.tui.transcript.virtual_list import VirtualList

MOST_COLUMNS = 110  # longer lines are hard to read
_MARGIN = 2  # the mark of the chosen message, and a space


class VirtualListView(ScrollView):
    """The column, its end in view as long as nobody scrolls away from it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.chosen: TranscriptItem | None = None  # the message that is marked
        self.column = VirtualList(self._make_artist, self._colour)
        self._at_end_before_resize = True
        self.show_horizontal_scrollbar = False

    # Sizes.

    @property
    def at_end(self) -> bool:
        return self.scroll_offset.y >= self.max_scroll_y - 1

    @property
    def text_width(self) -> int:
        return max(min(self.scrollable_content_region.width or self.size.width, MOST_COLUMNS) - _MARGIN - 1, 10)

    @property
    def _left(self) -> int:
        """Empty columns that put the text into the middle of a wide screen."""
        return max((self.scrollable_content_region.width - MOST_COLUMNS) // 2, 0)

    def restyle(self) -> None:
        """The theme has changed."""
        self.column.forget()
        self.place(to_end=self.at_end)

    def on_resize(self) -> None:
        column = self.column
        if column.artist is not None and column.artist.width == self.text_width:
            self.place(to_end=self.at_end)
            return
        anchor = self._anchor()
        column.forget()
        for piece in column.pieces:
            piece.height = estimate(piece, self.text_width)
        column.measure()
        self.place(to_end=self._at_end_before_resize, anchor=anchor)

    # Scrolling.

    def place(
        self, *, to_end: bool, anchor: tuple[RenderBlock, int] | None = None, from_line: int | None = None
    ) -> None:
        """Draw what is in view, correct the heights that were estimates, and scroll so that it stays in view.

        An anchor is a piece, and which of its lines is to be the first on screen. `from_line`: what stands above is as
        it was.
        """
        height = self.size.height
        if not self.is_attached or not height:
            return
        anchor = anchor or self._anchor()
        for _ in range(8):
            y = self._wanted_scroll(to_end, anchor)
            if not self.column.draw_lines(y, y + height):
                break
        y = self._wanted_scroll(to_end, anchor)
        before, whole = self.virtual_size, Size(self.size.width, self.column.height)
        if whole != before:  # else the scroll bar would be drawn again, which costs more than a line of text
            # Not by assignment, which would lay out the whole screen anew: nothing but the scroll bar has changed.
            self.set_reactive(VirtualListView.virtual_size, whole)
            self._scroll_update(whole)
        self._at_end_before_resize = to_end
        if y != self.scroll_offset.y:
            self.scroll_to(y=y, animate=False, force=True, immediate=True)
        elif from_line is not None and before.height <= whole.height:
            self.refresh(Region(0, from_line - y, whole.width, max(whole.height - from_line, 1)))
        else:
            self.refresh()

    def show_line(self, line: int) -> None:
        """Scroll a line to the top of the screen."""
        self.place(to_end=False, anchor=self.column.at(line))

    def _anchor(self) -> tuple[RenderBlock, int] | None:
        return self.column.at(self.scroll_offset.y) if self.column.pieces else None

    def _wanted_scroll(self, to_end: bool, anchor: tuple[RenderBlock, int] | None) -> int:
        most = max(self.column.height - self.size.height, 0)
        if to_end:
            return most
        if anchor is None or anchor[0] not in self.column.pieces:
            return min(self.scroll_offset.y, most)
        return min(self.column.top(anchor[0]) + anchor[1], most)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self.is_attached and self.column.draw_lines(round(new_value), round(new_value) + self.size.height):
            self.call_after_refresh(self._settle)

    def _settle(self) -> None:
        """What came into view was not as high as estimated."""
        self.place(to_end=self.at_end)

    # Drawing.

    def _make_artist(self) -> BlockRenderer:
        return BlockRenderer(self.text_width, Palette.of_theme(self.app.theme_variables, self.rich_style))

    def _colour(self, piece: RenderBlock) -> None:
        """Make the colours of a long code block in a thread: it may take a tenth of a second."""
        block, column, layout = piece.block, self.column, self.column.layout
        assert block is not None
        assert column.artist is not None
        palette = column.artist.palette

        def work() -> None:
            texts = highlight(block.source, block.language, palette)
            self.app.call_later(done, texts)

        def done(texts: list) -> None:  # type: ignore[type-arg]
            if column.layout == layout:
                piece.colours = texts
                column.draw(piece)
                self.refresh()

        self.run_worker(work, thread=True, group="colours", exit_on_error=False)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width or self.size.width
        line, artist = self.scroll_offset.y + y, self.column.artist
        if artist is None or line >= self.column.height:
            return Strip.blank(width, self.rich_style)
        palette = artist.palette
        piece, place = self.column.at(line)
        strip = self.column.strip(piece, place)
        if (selection := self.text_selection) is not None and (span := selection.get_span(line)) is not None:
            style = self.screen.get_component_rich_style("screen--selection")
            strip = marked(strip, *slice_of(span, self._left + _MARGIN), style)
        mark = "▌ " if piece.entry is self.chosen and self.has_focus else "  "
        head = [Segment(" " * self._left, palette.base), Segment(mark, palette.base + palette.chosen)]
        return Strip([*head, *strip]).adjust_cell_length(width, palette.base).apply_offsets(0, line)

    def line_text(self, line: int) -> str:
        """The text of a line of the column, which is drawn for it: lines below may move."""
        while self.column.draw_lines(line, line + 1):
            pass
        return self.column.strip(*self.column.at(line)).text

    # Selecting text.

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        follows, anchor = self.at_end, self._anchor()
        line, lines = selection.start.y if selection.start else 0, []
        # How many lines there are turns out on the way: what was never on screen has estimated heights.
        while line < self.column.height and (selection.end is None or line <= selection.end.y):
            span = selection.get_span(line)
            if span is not None:
                first, last = slice_of(span, self._left + _MARGIN)
                text = self.line_text(line)
                lines.append(text[first : None if last < 0 else last].rstrip())
            line += 1
        self.place(to_end=follows, anchor=anchor)
        return "\n".join(lines), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()
