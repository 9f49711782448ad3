"""Dialogs: the choice when the context is full, and one line of text. Input fields that do not blink."""

from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.reactive import reactive
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.textual_fixes.key_order import run_own_binding
from dslite.app.tui.transcript.sanitize import inert
from dslite.model.errors import DsliteError


class Field(Input):
    """A one-line input whose cursor does not blink."""

    cursor_blink = reactive(False)

    async def _on_key(self, event: events.Key) -> None:
        await run_own_binding(self, event)


class Area(TextArea):
    """An input of several lines."""

    async def _on_key(self, event: events.Key) -> None:
        await run_own_binding(self, event)


class ContextOverflowDialog(ModalPanel[str | None]):
    """The context is full: returns forget, summary, edit or stop, or None. The choice holds for the conversation."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Leave it", show=False)]

    def __init__(self, error: DsliteError) -> None:
        super().__init__()
        self._error = error

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel dialog"):
            yield Static(Text("The context is full", "bold"))
            yield Static(Text(inert(self._error.message)))
            yield OptionList(
                Option(Text("Forget the oldest turns and answer"), id="forget"),
                Option(Text("Go on in a new chat, with a summary of this one"), id="summary"),
                Option(Text("Edit the question"), id="edit"),
                Option(Text("Stop here"), id="stop"),
            )
            yield Static(Text("[chat] when_full in config.toml chooses for every chat", "dim"))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)


class ConfirmDialog(ModalPanel[bool | None]):
    """Returns whether the answer to a question is yes; the first choice is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "dismiss(False)", "No", show=False),
        Binding("y", "dismiss(True)", "Yes", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel dialog"):
            yield Static(Text(inert(self._question), "bold"))
            yield OptionList(Option(Text("No (n)"), id="no"), Option(Text("Yes (y)"), id="yes"))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id == "yes")


class LineDialog(ModalPanel[str | None]):
    """Returns one line of text, or None after Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Leave it", show=False)]

    def __init__(self, question: str, text: str = "", *, problem: str = "") -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._problem = problem

    def compose(self) -> ComposeResult:
        with Vertical(classes="panel dialog"):
            yield Static(Text(inert(self._question), "bold"))
            if self._problem:
                yield Static(Text(inert(self._problem)), classes="problem")
            yield Field(inert(self._text))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)
