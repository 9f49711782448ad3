"""The input: several lines, pasted text as it is, typed blocks, and earlier inputs at the edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.binding import Binding, BindingType
from textual.keys import Keys
from textual.message import Message
from textual.widgets import TextArea

from dslite.app.chat.command_completion import CommandCandidate
from dslite.app.terminal.console import printable
from dslite.app.terminal.dropped_files import dropped_files
from dslite.app.terminal.graphemes import grapheme_after, grapheme_before
from dslite.app.tui.textual_fixes.key_order import run_own_binding
from dslite.app.tui.widgets.command_hints import CommandHints

BLOCK = '"""'

# Terminals without the kitty protocol send Alt+Enter so, and Textual would take it for Enter.
ANSI_SEQUENCES_KEYS["\x1b\r"] = (Keys.ControlJ,)  # type: ignore[index]
_NEWLINES = ("shift+\r", "alt+\r")  # xterm with modifyOtherKeys


def is_open_block(text: str) -> bool:
    """Whether a typed block was begun and not ended: Enter is a new line in it."""
    return text.lstrip().startswith(BLOCK) and text.count(BLOCK) % 2 == 1


def without_block(text: str) -> str:
    """A message without the marks of a typed block around it."""
    inner = text.strip()
    if inner.startswith(BLOCK) and inner.endswith(BLOCK) and len(inner) >= 2 * len(BLOCK):
        return inner[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text


class History:
    """Earlier inputs, the newest first, and which of them is shown. The text that was being written is kept."""

    def __init__(self) -> None:
        self._inputs: list[str] = []
        self._place = -1
        self._draft = ""

    def extend(self, older: Sequence[str]) -> None:
        """Add inputs of earlier chats, behind those of this one."""
        self._inputs += [text for text in older if text not in set(self._inputs)]

    def add(self, text: str) -> None:
        """Add an input that was sent."""
        self._inputs = [text, *(other for other in self._inputs if other != text)]
        self._place = -1

    @property
    def is_shown(self) -> bool:
        """Whether an earlier input is shown, and not the one that is being written."""
        return self._place >= 0

    def step(self, direction: int, current: str) -> str | None:
        """The input one older (1) or newer (-1) than the one shown; None where there is none."""
        place = self._place + direction
        if not -1 <= place < len(self._inputs):
            return None
        if self._place == -1:
            self._draft = current
        self._place = place
        return self._draft if place == -1 else self._inputs[place]


class Prompt(TextArea):
    """Enter sends; the keys for a new line are bindings, so that they can be changed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("shift+enter,ctrl+j,alt+enter", "newline", "New line", show=False, id="newline"),
        Binding("pageup", "page(-1)", "Scroll up", show=False),
        Binding("pagedown", "page(1)", "Scroll down", show=False),
        Binding("ctrl+d", "delete_or_quit", "Quit on empty input", show=False),
        Binding("ctrl+e", "end_or_edit", "Edit the last message on empty input", show=False),
        Binding("end", "end_or_bottom", "To the bottom on empty input", show=False),
        Binding("shift+tab", "to_messages", "Go to the messages", show=False),
        Binding("ctrl+underscore", "undo", "Undo typing", show=False),
    ]

    @dataclass
    class Submitted(Message):
        """Enter: a message or a command."""

        text: str

    @dataclass
    class Attach(Message):
        """Attach files: a completion was taken, or they were dropped on the terminal."""

        paths: tuple[str, ...]

    class RemoveAttachment(Message):
        """Backspace on empty input."""

    class Quit(Message):
        """Ctrl+D on empty input."""

    class EditLast(Message):
        """Ctrl+E on empty input: edit the last question."""

    class FocusMessages(Message):
        """From the input to the messages."""

    @dataclass
    class Scroll(Message):
        """Scroll the messages, up for negative pages."""

        pages: int

    class ScrollToEnd(Message):
        """End on empty input."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, soft_wrap=True, show_line_numbers=False, tab_behavior="focus", highlight_cursor_line=False
        )
        self.cursor_blink = False
        self.earlier = History()
        self.hints: CommandHints | None = None
        self.sends_empty = False  # files are attached
        self._rejected = ""

    def put(self, text: str, caret: int | None = None) -> None:
        """Replace the input, with the caret at an offset, or at its end."""
        shown = printable(text)
        self.load_text(shown)
        before = shown if caret is None else shown[:caret]
        self.move_cursor((before.count("\n"), len(before) - before.rfind("\n") - 1))

    def reject(self, text: str) -> None:
        """Put back a refused input, all of it selected, so that typing replaces it. Newer input is left alone."""
        if not self.text:
            self.put(text)
            self.select_all()
            self._rejected = self.text

    @property
    def is_rejected(self) -> bool:
        """Whether the input is a refused one, untouched."""
        return bool(self.text) and self.text == self._rejected == self.selected_text

    async def _on_key(self, event: events.Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self._enter()
        elif event.key == "tab" and self._take_hint():
            event.stop()
            event.prevent_default()
        elif event.key in _NEWLINES:
            event.stop()
            event.prevent_default()
            self.action_newline()
        else:
            await run_own_binding(self, event)

    def _enter(self) -> None:
        if self.hints is not None and self.hints.chosen and (taken := self.hints.taken()) is not None:
            self._take(taken)
            if not taken.text.startswith("/") or taken.text.endswith((" ", "/")):
                return  # its argument is missing, or it is no command
        text = self.text
        if is_open_block(text):
            self.insert("\n")
        elif text.strip() or self.sends_empty:
            # Cleared here and now: keys of the next input may have arrived already.
            message = without_block(text).strip("\n")
            if message:
                self.earlier.add(message)
            self.load_text("")
            self.post_message(self.Submitted(message))

    async def _on_paste(self, event: events.Paste) -> None:
        if paths := dropped_files(event.text):
            event.stop()
            event.prevent_default()
            self.post_message(self.Attach(tuple(paths)))
            return
        # The class above inserts it, as Textual runs the handlers of all classes.
        event.text = printable(event.text.replace("\r\n", "\n").replace("\r", "\n"))

    def action_newline(self) -> None:
        self.insert("\n", maintain_selection_offset=False)

    def action_cursor_up(self, select: bool = False) -> None:
        if not select and self._move_hint(-1):
            return
        if select or not self.cursor_at_first_line or not self._recall(1):
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if not select and self._move_hint(1):
            return
        if select or not self.cursor_at_last_line or not self._recall(-1):
            super().action_cursor_down(select)

    def get_cursor_left_location(self) -> tuple[int, int]:
        """Left of the grapheme cluster before the caret, which Left and Backspace take as one character."""
        row, column = self.cursor_location
        return (row, grapheme_before(self.document[row], column)) if column else super().get_cursor_left_location()

    def get_cursor_right_location(self) -> tuple[int, int]:
        """Right of the cluster behind the caret, for Right and Delete."""
        row, column = self.cursor_location
        line = self.document[row]
        return (row, grapheme_after(line, column)) if column < len(line) else super().get_cursor_right_location()

    def _move_hint(self, step: int) -> bool:
        return self.hints is not None and not self.earlier.is_shown and self.hints.move(step)

    def _take_hint(self) -> bool:
        """Complete the command that is being typed."""
        if self.hints is None:
            return False
        self.hints.show_for(self.before_caret)  # the last keys may have come with this one
        taken = self.hints.taken()
        if taken is not None:
            self._take(taken)
            self.hints.show_for(self.before_caret)
        return taken is not None

    def _take(self, taken: CommandCandidate) -> None:
        row, column = self.cursor_location
        self.replace(printable(taken.text), (row, 0), (row, column), maintain_selection_offset=False)
        if taken.attach:
            self.post_message(self.Attach((taken.attach,)))

    @property
    def before_caret(self) -> str:
        """The line up to the caret: all of a long text would be read with every key."""
        row, column = self.cursor_location
        return self.document[row][:column]

    def _recall(self, direction: int) -> bool:
        text = self.earlier.step(direction, self.text)
        if text is None:
            return False
        self.put(text)
        if direction > 0:
            self.move_cursor((0, len(self.document[0])))
        return True

    def action_delete_left(self) -> None:
        if self.text:
            super().action_delete_left()
        else:
            self.post_message(self.RemoveAttachment())

    def action_page(self, direction: int) -> None:
        self.post_message(self.Scroll(direction))

    def action_delete_or_quit(self) -> None:
        if self.text:
            self.action_delete_right()
        else:
            self.post_message(self.Quit())

    def action_end_or_edit(self) -> None:
        if self.text:
            self.action_cursor_line_end()
        else:
            self.post_message(self.EditLast())

    def action_end_or_bottom(self) -> None:
        if self.text:
            self.action_cursor_line_end()
        else:
            self.post_message(self.ScrollToEnd())

    def action_to_messages(self) -> None:
        self.post_message(self.FocusMessages())
