"""The conversation on screen: its messages, of which the last may grow and one may be chosen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from dslite.app.tui.transcript.blocks import RenderBlock, TranscriptItem, estimate, render_blocks
from dslite.app.tui.transcript.sanitize import inert
from dslite.app.tui.transcript.virtual_list_view import VirtualListView


class Transcript(VirtualListView, can_focus=True):
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
        self.entries: list[TranscriptItem] = []

    # Content.

    def show(self, entries: Sequence[TranscriptItem], *, to_end: bool = True) -> None:
        """Replace everything."""
        self.entries = list(entries)
        self.chosen = None
        self.column.forget()
        pieces = [piece for entry in self.entries for piece in self._fresh(entry)]
        self.column.replace(0, len(self.column.pieces), pieces)
        self.place(to_end=to_end)

    def add(self, entry: TranscriptItem) -> None:
        """Put an entry at the end and show it."""
        self.entries.append(entry)
        self.column.replace(len(self.column.pieces), 0, self._fresh(entry))
        self.place(to_end=True)

    def add_before_last(self, entry: TranscriptItem) -> None:
        """Put an entry above the last one, which still grows."""
        follows = self.at_end
        start, _ = self._span(self.entries[-1])
        self.entries.insert(-1, entry)
        self.column.replace(start, 0, self._fresh(entry))
        self.place(to_end=follows)

    def entry(self, key: int) -> TranscriptItem | None:
        """The entry of a message."""
        return next((entry for entry in self.entries if entry.key == key), None)

    def remove_entry(self, entry: TranscriptItem) -> None:
        self.entries.remove(entry)
        self.column.replace(*self._span(entry), ())
        self.place(to_end=self.at_end)

    def drop_behind(self, entry: TranscriptItem) -> None:
        """Remove what stands below an entry."""
        for other in self.entries[self.entries.index(entry) + 1 :]:
            self.remove_entry(other)

    def extend(self, entry: TranscriptItem, text: str) -> None:
        """Text that an answer at the end grows by."""
        assert entry is self.entries[-1]
        assert entry.splitter is not None
        entry.text += text
        entry.splitter.feed(inert(text))
        self._renew_tail(entry)

    def finish(self, entry: TranscriptItem) -> None:
        """An answer is whole: draw it once more, as a finished one."""
        entry.growing = False
        if entry.splitter is not None:
            entry.splitter.finish()
        self._renew_tail(entry)

    def redraw_entry(self, entry: TranscriptItem) -> None:
        """An entry's head, text or note has changed."""
        follows = self.at_end
        start, count = self._span(entry)
        self.column.replace(start, count, self._fresh(entry))
        self.place(to_end=follows)

    def _span(self, entry: TranscriptItem) -> tuple[int, int]:
        """Where an entry's pieces begin in the column, and how many they are."""
        return self.column.pieces.index(entry.pieces[0]), len(entry.pieces)

    def _fresh(self, entry: TranscriptItem) -> list[RenderBlock]:
        entry.pieces = render_blocks(entry)
        for piece in entry.pieces:
            piece.height = estimate(piece, self.text_width)
        return entry.pieces

    def _renew_tail(self, entry: TranscriptItem) -> None:
        """Bring the pieces of the last entry in line with its blocks; only changed ones are drawn again."""
        assert entry.splitter is not None
        follows = self.at_end
        first = entry.splitter.first_changed
        kept, olds = entry.pieces[: 1 + first], entry.pieces[1 + first :]
        of_block = {id(piece.block): piece for piece in olds if piece.block}
        changed = [of_block.get(id(block)) or RenderBlock(entry, block) for block in entry.splitter.blocks[first:]]
        if entry.note:
            changed.append(RenderBlock(entry, kind="note"))
        before = _lines(olds)
        for piece in changed:
            self.column.draw(piece)
        entry.pieces = kept + changed
        top = self.column.replace(len(self.column.pieces) - len(olds), len(olds), changed)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, _lines(changed), strict=False)))
        self.place(to_end=follows, from_line=top + same)

    # Choosing a message.

    def choose(self, entry: TranscriptItem | None) -> None:
        """Mark a message and bring its head into view."""
        self.chosen = entry
        if entry is not None and entry.pieces:
            top = self.column.top(entry.pieces[0])
            bottom = top + sum(piece.height for piece in entry.pieces)
            y, height = self.scroll_offset.y, self.size.height
            if top < y or top >= y + height:
                self.show_line(top)
            elif bottom > y + height and top > y:
                self.show_line(min(top, bottom - height))
        self.refresh()

    @property
    def messages(self) -> list[TranscriptItem]:
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
        if line < self.column.height:
            piece, _ = self.column.at(line)
            if piece.entry.speaker in ("user", "assistant"):
                self.choose(piece.entry)


def _lines(pieces: Iterable[RenderBlock]) -> list[Strip]:
    """The lines of pieces, as they were last drawn."""
    return [strip for piece in pieces for strip in piece.strips or ()]
