"""The conversation on screen: its messages, of which the last may grow and one may be chosen."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.message import Message
from textual.strip import Strip

from dslite.app.terminal.console import visible
from dslite.app.tui.transcript.blocks import BlockRenderer, RenderBlock, TranscriptItem, estimate, render_blocks
from dslite.app.tui.transcript.find import Find, LineMark, block_at
from dslite.app.tui.transcript.virtual_list_view import VirtualListView

_BUTTONS = re.compile(r"copy: /copy (\d+)$|◂ \d+ of \d+ ▸$")


class Transcript(VirtualListView, can_focus=True):
    """Messages from the top, the newest at the bottom."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "choose(-1)", "Message above", show=False),
        Binding("down", "choose(1)", "Message below", show=False),
        Binding("left", "walk(-1)", "Branch before", show=False),
        Binding("right", "walk(1)", "Branch after", show=False),
        Binding("enter", "toggle_reasoning", "Show or hide the reasoning, or the text of files", show=False),
    ]

    @dataclass
    class Walk(Message):
        """Left or Right on a message: show the branch `step` further."""

        key: int
        step: int

    class ChosenChanged(Message):
        """Another message is marked, or none."""

    @dataclass
    class CopyCode(Message):
        """A click on the words beside a code block: copy it."""

        number: int

    @dataclass
    class Leave(Message):
        """Down behind the last message, or a printable key: back to the prompt."""

        text: str = ""

    class FoundChanged(Message):
        """The text that is looked for has other places now."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.items: list[TranscriptItem] = []
        self.found: Find | None = None  # while Ctrl+F is open
        self._pressed_at = Offset(-1, -1)  # of the screen, where the mouse button went down

    # Content.

    def show(self, items: Sequence[TranscriptItem], *, to_end: bool = True) -> None:
        """Replace everything."""
        self.items = list(items)
        self.chosen = None
        self.virtual_list.forget()
        blocks = [block for item in self.items for block in self._fresh(item)]
        self.virtual_list.replace(0, len(self.virtual_list.blocks), blocks)
        self._search()
        self.place(to_end=to_end)

    def add(self, item: TranscriptItem) -> None:
        """Put an item at the end and show it."""
        self.items.append(item)
        self.virtual_list.replace(len(self.virtual_list.blocks), 0, self._fresh(item))
        self._search()
        self.place(to_end=True)

    def add_before_last(self, item: TranscriptItem) -> None:
        """Put an item above the last one, which still grows."""
        follows = self.at_end
        start, _ = self._span(self.items[-1])
        self.items.insert(-1, item)
        self.virtual_list.replace(start, 0, self._fresh(item))
        self.place(to_end=follows)

    def item(self, key: int) -> TranscriptItem | None:
        """The item of a message."""
        return next((item for item in self.items if item.key == key), None)

    def remove_item(self, item: TranscriptItem) -> None:
        self.items.remove(item)
        self.virtual_list.replace(*self._span(item), ())
        self._search()
        self.place(to_end=self.at_end)

    def drop_behind(self, item: TranscriptItem) -> None:
        """Remove what stands below an item."""
        for other in self.items[self.items.index(item) + 1 :]:
            self.remove_item(other)

    def extend(self, item: TranscriptItem, text: str) -> None:
        """Text that an answer at the end grows by."""
        assert item is self.items[-1]
        assert item.splitter is not None
        item.text += text
        item.splitter.feed(text)
        self._search()
        self._renew_tail(item)

    def finish(self, item: TranscriptItem) -> None:
        """An answer is whole: draw it once more, as a finished one."""
        item.growing = False
        if item.splitter is not None:
            item.splitter.finish()
        self._renew_tail(item)

    def redraw_item(self, item: TranscriptItem) -> None:
        """An item's head, text or note has changed."""
        follows = self.at_end
        start, count = self._span(item)
        self.virtual_list.replace(start, count, self._fresh(item))
        self.place(to_end=follows)

    def _span(self, item: TranscriptItem) -> tuple[int, int]:
        """Where an item's blocks begin in the list, and how many they are."""
        return self.virtual_list.blocks.index(item.blocks[0]), len(item.blocks)

    def _fresh(self, item: TranscriptItem) -> list[RenderBlock]:
        item.blocks = render_blocks(item)
        for block in item.blocks:
            block.height = estimate(block, self.text_width)
        return item.blocks

    def _renew_tail(self, item: TranscriptItem) -> None:
        """Bring the blocks of the last item in line with its blocks; only changed ones are drawn again."""
        assert item.splitter is not None
        follows = self.at_end
        first = item.splitter.first_changed
        place = item.first_text_block + first
        kept, olds = item.blocks[:place], item.blocks[place:]
        of_block = {id(block.block): block for block in olds if block.block}
        changed = [of_block.get(id(block)) or RenderBlock(item, block) for block in item.splitter.blocks[first:]]
        if item.note:
            changed.append(RenderBlock(item, kind="note"))
        before = _lines(olds)
        for block in changed:
            self.virtual_list.draw(block)
        item.blocks = kept + changed
        top = self.virtual_list.replace(len(self.virtual_list.blocks) - len(olds), len(olds), changed)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, _lines(changed), strict=False)))
        self.place(to_end=follows, from_line=top + same)

    # Finding a text.

    def find(self, text: str, key: int | None = None) -> int:
        """Mark the places of a text and show the first, or the first of a message; return how many there are."""
        before, self.found = self.found, Find(text)
        if before is not None and (match := before.current) is not None:
            self.found.matches = [match]  # typing on keeps to the place
        self.found.search(self.items)
        if key is not None and (item := self.item(key)) is not None:
            self.found.go_to(item)
        self._show_found()
        return len(self.found.matches)

    def find_step(self, direction: int) -> None:
        """Show the next place (1) or the one before (-1)."""
        if self.found is not None:
            self.found.step(direction)
            self._show_found()

    def end_find(self) -> None:
        """Mark nothing any more."""
        self.found = None
        self.refresh()

    def _show_found(self) -> None:
        match = self.found.current if self.found is not None else None
        if match is not None and (block := block_at(match.item, match.start)) is not None:
            self.show_offset(block, match.start)
        self.refresh()

    def _search(self) -> None:
        """Messages have changed."""
        if self.found is not None:
            self.found.search(self.items)
            self.post_message(self.FoundChanged())

    def line_marks(self, block: RenderBlock, line: int, renderer: BlockRenderer) -> Sequence[LineMark]:
        return self.found.line_marks(block, line, renderer) if self.found is not None else ()

    # Choosing a message.

    def choose(self, item: TranscriptItem | None, *, scroll: bool = True) -> None:
        """Mark a message and bring its head into view."""
        self.chosen = item
        self.post_message(self.ChosenChanged())
        if scroll and item is not None and item.blocks:
            top = self.virtual_list.top(item.blocks[0])
            bottom = top + sum(block.height for block in item.blocks)
            y, height = self.scroll_offset.y, self.size.height
            if top < y or top >= y + height:
                self.show_line(top)
            elif bottom > y + height and top > y:
                self.show_line(min(top, bottom - height))
        self.refresh()

    @property
    def messages(self) -> list[TranscriptItem]:
        return [item for item in self.items if item.speaker in ("user", "assistant")]

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

    def action_toggle_reasoning(self) -> None:
        if self.chosen is not None:
            self._toggle_reasoning(self.chosen)

    def _toggle_reasoning(self, item: TranscriptItem) -> None:
        if item.reasoning_tokens:
            item.unfolded = not item.unfolded
            self.redraw_item(item)
        elif item.folded:
            item.text, item.folded = item.folded, item.text
            self.redraw_item(item)
            self._search()

    def on_focus(self) -> None:
        """Choose the last message in view. Nothing scrolls: the focus may come from a press of the mouse."""
        if self.chosen is None and self.virtual_list.blocks:
            below = self.scroll_offset.y + self.size.height
            seen = [item for item in self.messages if self.virtual_list.top(item.blocks[0]) < below]
            self.choose(seen[-1] if seen else None, scroll=False)
        self.refresh()

    def on_blur(self) -> None:
        self.post_message(self.ChosenChanged())
        self.refresh()

    def on_key(self, event: events.Key) -> None:
        if event.character and event.is_printable:
            event.stop()
            self.post_message(self.Leave(event.character))

    def on_paste(self, event: events.Paste) -> None:
        event.stop()
        self.post_message(self.Leave(visible(event.text)))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._pressed_at = event.screen_offset

    def on_click(self, event: events.Click) -> None:
        line = self.scroll_offset.y + event.y
        if line < self.virtual_list.height:
            block, place = self.virtual_list.at(line)
            if block.item.speaker in ("user", "assistant"):
                self.choose(block.item, scroll=False)
            if event.chain == 1 and self.text_selection is None:
                self._press(block, place, event.x - self._text_left)
        if event.chain > 1:
            event.prevent_default()  # Textual would select everything, the prompt included
        if event.screen_offset == self._pressed_at and event.chain > 1:  # the end of a drag is a click to Textual
            self.select_around(event.x, line, whole_line=event.chain > 2)

    def _press(self, block: RenderBlock, line: int, column: int) -> None:
        """A click on a cell of a block: the arrows of branches, the words beside code, folded reasoning."""
        if block.kind == "reasoning":
            self._toggle_reasoning(block.item)
            return
        text = self.virtual_list.strip(block, line).text
        for words in _BUTTONS.finditer(text):
            start, end = (cell_len(text[:place]) for place in words.span())
            if not start <= column < end:
                continue
            if block.kind == "head" and block.item.branch[1] > 1:
                self.post_message(self.Walk(block.item.key, -1 if column < (start + end) / 2 else 1))
            elif block.block is not None and block.block.number and words[1] == str(block.block.number):
                self.post_message(self.CopyCode(block.block.number))


def _lines(blocks: Iterable[RenderBlock]) -> list[Strip]:
    """The lines of blocks, as they were last drawn."""
    return [strip for block in blocks for strip in block.strips or ()]
