"""The line below the messages. It says where the end of the chat is out of view."""

from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from dslite.app.tui.style.palette import Palette

_BEHIND = 2  # columns of the rule behind the words


class LowerRule(Widget):
    """A rule with words near its end."""

    ALLOW_SELECT = False

    class Pressed(Message):
        """A click on the words."""

    def __init__(self, *, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self._words = ""

    def show(self, words: str) -> None:
        """Put words into the rule, or none."""
        if words != self._words:
            self._words = words
            self.refresh()

    def render(self) -> Text:
        width = self.content_size.width
        words = f" {self._words} " if self._words else ""
        room = width - cell_len(words) - _BEHIND
        if not words or room < 1:
            return Text("─" * width, end="")
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        return Text.assemble("─" * room, (words, palette.user), "─" * _BEHIND, end="")

    def on_click(self, event: events.Click) -> None:
        if self._words:
            event.stop()
            self.post_message(self.Pressed())
