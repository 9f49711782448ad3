"""The messages that were sent while an answer is generated, above the input."""

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Static

from dslite.app.tui.transcript.sanitize import one_line

_MAX_SHOWN = 3


class WaitingMessages(Static):
    """One line for each message; hidden while there are none."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown: tuple[str, ...] = ()
        self.display = False

    def show(self, messages: Sequence[str]) -> None:
        if tuple(messages) == self._shown:
            return
        self._shown = tuple(messages)
        self.display = bool(messages)
        lines = [f"waits: {one_line(text)}" for text in messages[:_MAX_SHOWN]]
        if len(messages) > _MAX_SHOWN:
            lines.append(f"and {len(messages) - _MAX_SHOWN} more")
        self.update(Text("\n".join(lines), "dim", no_wrap=True, overflow="ellipsis"))
