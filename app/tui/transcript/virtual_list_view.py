"""A widget that scrolls a virtual list of blocks and draws what is visible.

It holds no widget for a message: lines are asked for one at a time (Textual's line API). What the user looks at stays
in its place while heights turn out to be other than estimated, and while the text below still grows.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem, estimate
from dslite.app.tui.transcript.find import LineMark
from dslite.app.tui.transcript.highlight import highlight
from dslite.app.tui.transcript.sanitize import inert
from dslite.app.tui.transcript.selection import (
    end_offset,
    line_of,
    marked,
    restyled,
    slice_of,
    source_between,
    start_offset,
)
from dslite.app.tui.transcript.virtual_list import VirtualList

MOST_COLUMNS = 110  # longer lines are hard to read
_MARGIN = 2  # the mark of the chosen message, and a space


class VirtualListView(ScrollView):
    """A virtual list that follows its end until the user scrolls away from it."""

    @dataclass
    class EndInView(Message):
        """The end has come into view, or left it."""

        yes: bool

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._end_in_view = True  # as was said last
        self.chosen: TranscriptItem | None = None  # the message that is marked
        self.virtual_list = VirtualList(self._make_renderer, self._colour)
        self._follows = True  # the end stays in view
        self._first_in_view: tuple[RenderBlock, int] | None = None
        self._placed_size = Size(0, 0)  # at which these two were set: a resize scrolls before it is handled
        self.show_horizontal_scrollbar = False

    # Sizes.

    @property
    def at_end(self) -> bool:
        return self.scroll_offset.y >= self.max_scroll_y - 1

    @property
    def text_width(self) -> int:
        return max(min(self.scrollable_content_region.width or self.size.width, MOST_COLUMNS) - _MARGIN - 1, 10)

    @property
    def empty_columns(self) -> int:
        """Columns that put the text into the middle of a wide screen."""
        return max((self.scrollable_content_region.width - MOST_COLUMNS) // 2, 0)

    @property
    def _text_left(self) -> int:
        """Columns before the text: empty ones, and the mark of the chosen message."""
        return self.empty_columns + _MARGIN

    def restyle(self) -> None:
        """The theme has changed."""
        self.virtual_list.forget()
        self.place(to_end=self.at_end)

    def on_resize(self) -> None:
        """Keep the reader's place: the end, or the first line in view, wherever it is wrapped now."""
        virtual_list, before = self.virtual_list, self.virtual_list.renderer
        follows, anchor = self._follows, self._first_in_view
        self._placed_size = self.size
        if before is None or before.width == self.text_width or anchor is None:
            self.place(to_end=follows, anchor=anchor)
            return
        offset = start_offset(before, *anchor, 0)
        virtual_list.forget()
        for block in virtual_list.blocks:
            block.height = estimate(block, self.text_width)
        virtual_list.measure()
        block, line = anchor
        self.place(to_end=follows, anchor=(block, line_of(self._make_renderer(), block, offset, line)))

    # Scrolling.

    def place(
        self, *, to_end: bool, anchor: tuple[RenderBlock, int] | None = None, from_line: int | None = None
    ) -> None:
        """Draw what is in view, correct the heights that were estimates, and scroll so that it stays in view.

        An anchor is a block, and which of its lines is to be the first on screen. `from_line`: what stands above is as
        it was.
        """
        height = self.size.height
        if not self.is_attached or not height:
            return
        anchor = anchor or self._anchor()
        for _ in range(8):
            y = self._wanted_scroll(to_end, anchor)
            if not self.virtual_list.draw_lines(y, y + height):
                break
        y = self._wanted_scroll(to_end, anchor)
        before, whole = self.virtual_size, Size(self.size.width, self.virtual_list.height)
        if whole != before:  # else the scroll bar would be drawn again, which costs more than a line of text
            # Not by assignment, which would lay out the whole screen anew: nothing but the scroll bar has changed.
            self.set_reactive(VirtualListView.virtual_size, whole)
            self._scroll_update(whole)
        self._follows = to_end
        if y != self.scroll_offset.y:
            self.scroll_to(y=y, animate=False, force=True, immediate=True)
        elif from_line is not None and before.height <= whole.height:
            self.refresh(Region(0, from_line - y, whole.width, max(whole.height - from_line, 1)))
        else:
            self.refresh()
        self._first_in_view = self._anchor()
        self._tell_end()

    def _tell_end(self) -> None:
        if self.at_end != self._end_in_view:
            self._end_in_view = self.at_end
            self.post_message(self.EndInView(self.at_end))

    def show_offset(self, block: RenderBlock, offset: int) -> None:
        """Bring an offset of a message into view, with lines above it, where it is not in view."""
        height = self.size.height
        if self.virtual_list.renderer is None or not height:
            return
        for _ in range(3):  # lines above may turn out higher than estimated, and move it
            self.virtual_list.strip(block, 0)
            line = line_of(self.virtual_list.renderer, block, offset, 0)
            at, y = self.virtual_list.top(block) + line, self.scroll_offset.y
            if y <= at < y + height:
                break
            self.place(to_end=False, anchor=self.virtual_list.at(max(at - height // 3, 0)))
        self.refresh()

    def show_line(self, line: int) -> None:
        """Scroll a line to the top of the screen."""
        self.place(to_end=False, anchor=self.virtual_list.at(line))

    def _anchor(self) -> tuple[RenderBlock, int] | None:
        return self.virtual_list.at(self.scroll_offset.y) if self.virtual_list.blocks else None

    def _wanted_scroll(self, to_end: bool, anchor: tuple[RenderBlock, int] | None) -> int:
        most = max(self.virtual_list.height - self.size.height, 0)
        if to_end:
            return most
        if anchor is None or anchor[0] not in self.virtual_list.blocks:
            return min(self.scroll_offset.y, most)
        return min(self.virtual_list.top(anchor[0]) + anchor[1], most)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if self.size == self._placed_size:
            self._follows, self._first_in_view = self.at_end, self._anchor()
            self._tell_end()
        if self.is_attached and self.virtual_list.draw_lines(round(new_value), round(new_value) + self.size.height):
            self.call_after_refresh(self._settle)

    def _settle(self) -> None:
        """What came into view was not as high as estimated."""
        self.place(to_end=self.at_end)

    # Drawing.

    def _make_renderer(self) -> BlockRenderer:
        return BlockRenderer(self.text_width, Palette.of_theme(self.app.theme_variables, self.rich_style))

    def _colour(self, render_block: RenderBlock) -> None:
        """Make the colours of a long code block in a thread: it may take a tenth of a second."""
        block, virtual_list, layout = render_block.block, self.virtual_list, self.virtual_list.layout
        assert block is not None
        assert virtual_list.renderer is not None
        source, language, palette = inert(block.source), block.language, virtual_list.renderer.palette

        def work() -> None:
            self.app.call_later(done, highlight(source, language, palette))

        def done(texts: list) -> None:  # type: ignore[type-arg]
            if virtual_list.layout == layout:
                render_block.colours = texts
                virtual_list.draw(render_block)
                self.refresh()

        self.run_worker(work, thread=True, group="colours", exit_on_error=False)

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width or self.size.width
        line, renderer = self.scroll_offset.y + y, self.virtual_list.renderer
        if renderer is None or line >= self.virtual_list.height:
            return Strip.blank(width, self.rich_style)
        palette = renderer.palette
        block, place = self.virtual_list.at(line)
        strip = self.virtual_list.strip(block, place)
        for found in self.line_marks(block, place, renderer):
            strip = restyled(strip, found.start, found.end, palette.found_here if found.current else palette.found)
        if (selection := self.text_selection) is not None and (span := selection.get_span(line)) is not None:
            style = self.screen.get_component_rich_style("screen--selection")
            strip = marked(strip, *slice_of(span, self._text_left), style)
        mark = "▌ " if block.item is self.chosen and self.has_focus else "  "
        head = [Segment(" " * self.empty_columns, palette.base), Segment(mark, palette.base + palette.chosen)]
        return Strip([*head, *strip]).adjust_cell_length(width, palette.base).apply_offsets(0, line)

    def line_marks(self, block: RenderBlock, line: int, renderer: BlockRenderer) -> Sequence[LineMark]:
        """What is marked in one of a block's lines, beside a selection."""
        return ()

    def line_text(self, line: int) -> str:
        """The text of a line, which is drawn for it: lines below may move."""
        while self.virtual_list.draw_lines(line, line + 1):
            pass
        return self.virtual_list.strip(*self.virtual_list.at(line)).text

    # Selecting text.

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The source of the messages between the ends of a selection."""
        blocks, renderer = self.virtual_list.blocks, self.virtual_list.renderer
        if not blocks or renderer is None:
            return None
        first, last = (blocks[0].item, 0), (blocks[-1].item, len(blocks[-1].item.text))
        if selection.start is not None:
            block, line = self.virtual_list.at(selection.start.y)
            first = block.item, start_offset(renderer, block, line, max(selection.start.x - self._text_left, 0))
        if selection.end is not None:
            block, line = self.virtual_list.at(selection.end.y)
            last = block.item, end_offset(renderer, block, line, max(selection.end.x - self._text_left, 0))
        items = list(dict.fromkeys(block.item for block in blocks))
        return source_between(items, first, last), "\n"

    def text_select_all(self) -> None:
        """Nothing: Textual calls it for a double click, and for a second drag soon after the first."""

    def select_around(self, x: int, line: int, *, whole_line: bool) -> None:
        """Select the word under the mouse, as a double click does, or its line."""
        text = self.line_text(line)
        cells = x - self._text_left
        place = next((place for place in range(len(text)) if cell_len(text[: place + 1]) > cells), None)
        pattern = r".+" if whole_line else r"\w+|[^\w\s]+"
        words = (match.span() for match in re.finditer(pattern, text))
        span = next((span for span in words if place is not None and span[0] <= place < span[1]), None)
        if span is not None:
            ends = (Offset(self._text_left + column, line) for column in span)
            self.screen.selections = {self: Selection(*ends)}

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()
