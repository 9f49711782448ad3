"""Ctrl+F: the line that looks for a text in the conversation."""

from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from dslite.app.tui.screens.dialogs import Field
from dslite.app.tui.transcript.sanitize import one_line


class FindBar(Horizontal):
    """A field, which match of how many is shown, and the keys. Hidden until it is opened."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "step(1)", "Next", show=False, priority=True),
        Binding("up,shift+enter", "step(-1)", "Before", show=False, priority=True),
        Binding("escape", "close", "Close", show=False, priority=True),
    ]

    @dataclass
    class Changed(Message):
        """The text to look for."""

        text: str

    @dataclass
    class Step(Message):
        """On to the next match (1), or back (-1)."""

        direction: int

    class Closed(Message):
        """Esc."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._field = Field(placeholder="find in this chat")
        self._count = Static(id="find-count")
        self.display = False

    def compose(self) -> ComposeResult:
        yield Static("find ", classes="mark")
        yield self._field
        yield self._count

    @property
    def text(self) -> str:
        return self._field.value

    def open(self, text: str = "", *, focus: bool = True) -> None:
        """Show the line with a text, or with the one that was looked for last; with the focus, all of it selected."""
        self.display = True
        if text:
            with self._field.prevent(Input.Changed):
                self._field.value = one_line(text)
        if focus:
            self.screen.set_focus(self._field)  # at once, not after the keys that came with Ctrl+F
            self._field.select_all()

    def show(self, count: str) -> None:
        """`count` is `1 of 7`; empty while nothing is looked for."""
        keys = " · Enter next · Up before · Esc" if self._field.has_focus else " · Ctrl+F goes on · Esc"
        keys = keys if self.app.size.width >= 70 else ""
        self._count.update(Text(f"{count}{keys}" if count else "Esc closes", "dim", no_wrap=True))

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Changed(event.value))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Step(1))

    def action_step(self, direction: int) -> None:
        self.post_message(self.Step(direction))

    def action_close(self) -> None:
        self.post_message(self.Closed())
