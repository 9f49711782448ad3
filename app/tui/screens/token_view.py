"""/tokens: an answer by the probabilities of its tokens, and the branch that begins with another token.

The less likely a token was, the more it stands out: by its colours, and by underline and bold where colours are not
seen.
"""

import math
from bisect import bisect_right
from itertools import accumulate
from typing import ClassVar

from rich._wrap import divide_line
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from dslite.app.chat.token_scores import ScoredAnswer, candidates
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.sanitize import inert
from dslite.runtime.events import Candidate, Token

_UNSURE, _UNLIKELY = 0.5, 0.2  # below which a token stands out, and stands out more
_HINTS = "Left, Right: token · Tab: the next unlikely one · Up, Down: candidate · Enter goes on from it · Esc closes"


class TokenView(ModalPanel[tuple[int, Candidate] | None]):
    """Returns the place of a token and the candidate to put there, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f6,q", "dismiss(None)", "Close", show=False),
        Binding("right", "move(1)", "Next token", show=False),
        Binding("left", "move(-1)", "Token before", show=False),
        Binding("home", "go(0)", "First token", show=False),
        Binding("end", "go(-1)", "Last token", show=False),
        Binding("tab", "unlikely", "Next unlikely token", show=False),
        Binding("down", "choose(1)", "Next candidate", show=False),
        Binding("up", "choose(-1)", "Candidate before", show=False),
        Binding("enter", "branch", "Go on from it", show=False),
    ]

    def __init__(self, answer: ScoredAnswer) -> None:
        super().__init__()
        self._answer = answer
        self._place = answer.next_unlikely(-1, _UNSURE) if answer.tokens else 0
        self._place = max(self._place, 0)
        self._candidate = 0
        self._texts = [_shown(token) for token in answer.tokens]
        self._starts = [0, *accumulate(map(len, self._texts))]

    def compose(self) -> ComposeResult:
        with Vertical(id="tokens", classes="panel"):
            yield Static(id="tokens-head")
            with VerticalScroll(id="tokens-scroll", can_focus=False):
                yield Static(id="tokens-text")
            yield Static(id="candidates")
            yield Static(Text(_HINTS), id="tokens-hints")

    def on_mount(self) -> None:
        self.call_after_refresh(self._draw)

    def on_resize(self, _: events.Resize) -> None:
        self.call_after_refresh(self._draw)

    # Drawing.

    def _draw(self) -> None:
        if not self.is_attached:
            return
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        width = max(self.query_one("#tokens-scroll").content_size.width - 1, 8)
        lines, row = self._lines(palette, width)
        self.query_one("#tokens-text", Static).update(Text("\n", end="").join(lines))
        scroll = self.query_one("#tokens-scroll", VerticalScroll)
        scroll.scroll_to(y=max(row - scroll.size.height // 2, 0), animate=False)
        self._draw_candidates(palette)

    def _lines(self, palette: Palette, width: int) -> tuple[list[Text], int]:
        """The text in lines, and in which of them the marked token begins."""
        whole = Text("".join(self._texts), end="")
        for place, text in enumerate(self._texts):
            style = self._style(place, palette)
            if text and style is not None:
                whole.stylize(style, self._starts[place], self._starts[place] + len(text))
        ends: list[int] = []
        start = 0
        for line in whole.plain.split("\n"):
            ends += [start + offset for offset in divide_line(line, width)]
            start += len(line) + 1
            ends.append(start)
        ends = [end for end in ends[:-1] if 0 < end < len(whole.plain)]
        lines = list(whole.divide(ends))
        for drawn in lines:
            drawn.rstrip_end(width)
            if drawn.plain.endswith("\n"):
                drawn.right_crop(1)
        return lines, bisect_right(ends, self._starts[self._place])

    def _style(self, place: int, palette: Palette) -> Style | None:
        if place == self._place:
            return palette.found_here + Style(bold=True)
        probability = self._answer.probability(place)
        if probability < _UNLIKELY:
            return palette.found + Style(bold=True, underline=True)
        return palette.warning + Style(underline=True) if probability < _UNSURE else None

    def _draw_candidates(self, palette: Palette) -> None:
        token = self._answer.tokens[self._place]
        count = len(self._answer.tokens)
        head = Text.assemble((f"Token {self._place + 1:,} of {count:,}", "bold"), end="")
        head.append(f"   {self._answer.probability(self._place):.1%} ", palette.muted)
        head.append(repr(inert(token.text)), palette.muted)
        self.query_one("#tokens-head", Static).update(head)
        rows = []
        for number, each in enumerate(candidates(token)):
            here = number == self._candidate
            line = Text.assemble(("› " if here else "  ", palette.chosen), end="")
            line.append(f"{math.exp(each.logprob):6.1%}  ", "bold" if here else "")
            line.append(repr(inert(each.text)) if each.text else f"token {each.id}", "bold" if here else "")
            line.append("   written" if each.id == token.id else "", palette.muted)
            rows.append(line)
        self.query_one("#candidates", Static).update(Text("\n", end="").join(rows))

    # Keys.

    def action_move(self, step: int) -> None:
        self._go(min(max(self._place + step, 0), len(self._texts) - 1))

    def action_go(self, place: int) -> None:
        self._go(place % len(self._texts))

    def action_unlikely(self) -> None:
        self._go(self._answer.next_unlikely(self._place, _UNSURE))

    def _go(self, place: int) -> None:
        if place != self._place:
            self._place, self._candidate = place, 0
            self._draw()

    def action_choose(self, step: int) -> None:
        count = len(candidates(self._answer.tokens[self._place]))
        if count:
            self._candidate = (self._candidate + step) % count
            self._draw()

    def action_branch(self) -> None:
        """Go on from the marked candidate; the token that was written is no branch."""
        token = self._answer.tokens[self._place]
        found = candidates(token)
        if found and found[self._candidate].id != token.id:
            self.dismiss((self._place, found[self._candidate]))


def _shown(token: Token) -> str:
    """A token's text; what became printable with a later one is nothing here."""
    return inert(token.text)
