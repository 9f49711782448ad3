"""The base of all panels above the chat."""

from typing import ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

from dslite.app.tui.messages import Interrupt

T = TypeVar("T")


class ModalPanel(ModalScreen[T]):
    """Ctrl+C does here what it does on empty input: no key of the application reaches a modal screen."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "interrupt", "Copy; twice: quit", show=False)]

    def action_interrupt(self) -> None:
        """Copy a selection; else a hint, and the second one quits."""
        self.post_message(Interrupt(self.get_selected_text() or ""))
