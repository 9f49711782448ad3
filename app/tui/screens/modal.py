"""What all panels above the chat have in common."""

from typing import TYPE_CHECKING, ClassVar, TypeVar

from textual.binding import Binding, BindingType
from textual.screen import ModalScreen

if TYPE_CHECKING:
    from dslite.app.tui.app import ChatApp

T = TypeVar("T")


class ModalPanel(ModalScreen[T]):
    """Ctrl+C does here what it does on empty input: no key of the application reaches a modal screen."""

    app: "ChatApp"

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "interrupt", "Copy; twice: quit", show=False)]

    def action_interrupt(self) -> None:
        """Copy a selection; else a hint, and the second one quits."""
        if selected := self.get_selected_text():
            self.app.chat.copy_text(selected, "the selection")
        else:
            self.app.quits_now()
