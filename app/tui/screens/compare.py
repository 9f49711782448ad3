"""/compare: two answers in columns, one below the other on a narrow screen; the words that differ are marked."""

from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Static

from dslite.app.chat.comparison import AnswerComparison, differences
from dslite.app.chat.controller import ChatController
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.sanitize import inert, one_line

_EVERY_S = 0.15
_NARROW = 80  # columns under which one answer stands below the other
_HINTS = "Left, Right choose · Enter goes on with it · Esc leaves the chat as it was · Up, Down scroll"


class CompareScreen(ModalPanel[int | None]):
    """Returns the place of the answer to go on with, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave it", show=False),
        Binding("enter", "choose", "Go on", show=False),
        Binding("left", "mark(0)", "The first", show=False),
        Binding("right", "mark(1)", "The second", show=False),
        Binding("tab", "mark_other", "The other", show=False),
        Binding("down", "scroll_both(1)", "Down", show=False),
        Binding("up", "scroll_both(-1)", "Up", show=False),
        Binding("pagedown,space", "scroll_both(10)", "Page down", show=False),
        Binding("pageup", "scroll_both(-10)", "Page up", show=False),
    ]

    def __init__(self, controller: ChatController, comparison: AnswerComparison) -> None:
        super().__init__()
        self._controller, self._comparison = controller, comparison
        self._place = 1  # of the marked answer
        self._drawn: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        with Vertical(id="compare", classes="panel"), Container(id="answers"):
            for number in (0, 1):
                with Vertical(classes="answer"):
                    yield Static(id=f"answer-head-{number}", classes="head")
                    with VerticalScroll(id=f"answer-{number}", can_focus=False):
                        yield Static(id=f"answer-text-{number}")
        yield Static(Text(_HINTS), id="compare-hints")

    def on_mount(self) -> None:
        self._draw()
        self.set_interval(_EVERY_S, self._draw)

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width < _NARROW, "stacked")

    def _draw(self) -> None:
        """Draw what has changed since the last time."""
        sides = self._comparison.sides
        state = (*((side.text, side.is_whole) for side in sides), self._place, self.app.theme)
        if state == self._drawn or not self.is_attached:
            return
        self._drawn = state
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        texts = [inert(side.text) for side in sides]
        whole = self._comparison.is_whole
        parts = differences(texts) if whole else ([(texts[0], False)], [(texts[1], False)])
        for number, (side, words) in enumerate(zip(sides, parts, strict=True)):
            here = number == self._place
            head = Text("› " if here else "  ", palette.chosen if here else palette.muted, end="")
            head.append(one_line(side.heading), palette.chosen if here else palette.muted)
            self.query_one(f"#answer-head-{number}", Static).update(head)
            text = Text(end="")
            for part, differs in words:
                text.append(part, palette.found if differs else "")
            if not side.is_whole:
                text.append("▌" if side.node is not None else "waits", palette.muted)
            self.query_one(f"#answer-text-{number}", Static).update(text)

    def action_mark(self, place: int) -> None:
        self._place = place
        self._draw()

    def action_mark_other(self) -> None:
        self.action_mark(1 - self._place)

    def action_scroll_both(self, lines: int) -> None:
        for number in (0, 1):
            self.query_one(f"#answer-{number}").scroll_relative(y=lines, animate=False)

    def action_choose(self) -> None:
        """Go on with the marked answer, once both are whole."""
        if self._controller.reply is None and self._comparison.sides[self._place].is_whole:
            self.dismiss(self._place)

    def action_leave(self) -> None:
        """Stop an answer that grows; else leave."""
        if not self._controller.stop():
            self.dismiss(None)
