"""What a slash command that is being typed can become: a few lines above the input."""

from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.text import Text
from textual.widgets import Static

from dslite.app.chat.command_completion import CommandCandidate
from dslite.app.tui.transcript.sanitize import one_line

_MOST_SHOWN = 6
_FEW_SHOWN = 3  # on a screen of few lines
_LABEL_WIDTH = 30


class CommandHints(Static):
    """Candidates, of which one is marked. Tab takes it; so does Enter once Up or Down has chosen it."""

    def __init__(self, find: Callable[[str], Sequence[CommandCandidate]], *, id: str | None = None) -> None:
        """`find` returns the candidates for an input."""
        super().__init__(id=id)
        self._find = find
        self._candidates: Sequence[CommandCandidate] = ()
        self._place = 0
        self._text = ""  # for which these are the candidates
        self._closed_for: str | None = None
        self.chosen = False  # whether Up or Down has marked one
        self.display = False

    def show_for(self, text: str, *, anew: bool = False) -> None:
        """Show the candidates for the line up to the caret; nothing where there are none. `anew`: look again."""
        if text == self._text and not anew:
            return
        if text != self._text:
            self._place, self.chosen = 0, False
        self._text = text
        if text != self._closed_for:
            self._closed_for = None
        self._candidates = self._find(text) if self._closed_for is None else ()
        self._place = min(self._place, max(len(self._candidates) - 1, 0))
        self.display = bool(self._candidates)
        if self.display:
            self._draw()

    def close(self) -> None:
        """Show nothing until the text changes."""
        self._closed_for = self._text
        self._candidates = ()
        self.display = self.chosen = False

    def move(self, step: int) -> bool:
        """Mark the next candidate or the one before; False where nothing is shown."""
        if not self._candidates:
            return False
        self._place = (self._place + step) % len(self._candidates) if self.chosen else (0 if step > 0 else -1)
        self._place %= len(self._candidates)
        self.chosen = True
        self._draw()
        return True

    def taken(self) -> CommandCandidate | None:
        """The marked candidate; None where nothing is shown, or where it is there already."""
        if not self._candidates:
            return None
        candidate = self._candidates[self._place]
        same = candidate.text.rstrip() == self._text.rstrip()
        adds_space = candidate.text.endswith(" ") and not self._text.endswith(" ")
        return None if same and not adds_space and not candidate.attach else candidate

    def _draw(self) -> None:
        most = _MOST_SHOWN if self.screen.size.height > 20 else _FEW_SHOWN
        first = max(min(self._place - most // 2, len(self._candidates) - most), 0)
        shown = self._candidates[first : first + most]
        width = min(max(cell_len(one_line(candidate.label)) for candidate in shown), _LABEL_WIDTH)
        lines = []
        for number, candidate in enumerate(shown, first):
            label = Text(one_line(candidate.label), end="")
            label.truncate(max(width, _LABEL_WIDTH) if candidate.help else 200, overflow="ellipsis", pad=False)
            label.append(" " * max(width - cell_len(label.plain), 0))
            here = number == self._place
            label.stylize("bold" if here else "")
            lines.append(Text.assemble("› " if here else "  ", label, "  ", (one_line(candidate.help), "dim"), end=""))
        more = len(self._candidates) - len(shown)
        if more:
            lines.append(Text(f"  {more} more · Up, Down · Tab takes it", "dim", end=""))
        self.update(Text("\n", end="").join(lines))
