"""The line of facts: what the machine is doing, where the model lives, how full the context is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from dslite.app.terminal.progress_text import loading_text, reading_text
from dslite.app.tui.style.palette import Palette
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.events import Loading, Prefilling
from dslite.runtime.units import size_text

Doing = Literal["starting", "loading", "reading", "writing", "stopping", "idle", "nothing"]
WARN_AT = 0.85
_BAR = 8
_COUNTING_S = 0.25  # while an answer is written, its numbers change with every token: nobody reads them so fast


@dataclass
class Status:
    """Everything that the line tells."""

    doing: Doing = "starting"
    model: str = ""
    profile: str = ""
    loading: Loading | None = None
    reading: Prefilling | None = None
    rate: float = 0.0  # tokens/s while writing, or of the last answer
    used: int = 0  # tokens of the context
    facts: ModelStats | None = None
    waiting: int = 0  # messages that wait for the model
    unsaved: bool = False
    notice: str = ""  # takes the place of all else for a moment

    @property
    def fullness(self) -> float:
        return self.used / self.facts.context if self.facts and self.facts.context else 0.0


def activity(status: Status) -> str:
    """What the machine is doing now, with how far."""
    match status.doing:
        case "starting":
            return "looking for the model"
        case "loading":
            event = status.loading
            if event is None or not event.total_bytes:
                return "starting the engine"
            return loading_text(event)
        case "reading":
            read = status.reading
            return "reading" if read is None else reading_text(read)
        case "writing":
            return f"{status.rate:,.0f} tok/s" if status.rate >= 10 else f"{status.rate:,.1f} tok/s"
        case "stopping":
            return "stopped"
        case "nothing":
            return "no model"
    return f"{status.rate:,.0f} tok/s last" if status.rate else "ready"


def where(facts: ModelStats) -> str:
    """Where the model lives: GPU, slots, disk."""
    device = {"cuda": "GPU", "mps": "GPU", "cpu": "CPU"}.get(facts.device.split(":")[0], facts.device)
    slots = facts.experts.get("slots", 0)
    if facts.experts_per_layer and 0 < slots < facts.experts_per_layer:
        return f"{device} {slots}/{facts.experts_per_layer} experts"
    return device


def size(count: int) -> str:
    """Bytes, short: from ten of a unit on without a decimal."""
    text = size_text(count)
    number, _, unit = text.partition(" ")
    return f"{float(number):.0f} {unit}" if float(number) >= 10 else text


def context_bar(fullness: float) -> str:
    filled = min(round(fullness * _BAR), _BAR)
    return "▰" * filled + "▱" * (_BAR - filled)


def parts(status: Status, palette: Palette) -> list[tuple[int, Text]]:
    """The line's parts in order, each with its rank: where they do not fit, the highest rank goes first."""
    busy = status.doing in ("starting", "loading", "reading", "writing")
    found: list[tuple[int, Text]] = []

    def add(rank: int, text: str, style: Style | str = "") -> None:
        if text:
            found.append((rank, Text(text, style, end="")))

    if status.unsaved:
        add(1, "not saved", palette.warning)
    if facts := status.facts:
        add(5, where(facts))
        full = status.fullness
        style = palette.warning if full >= WARN_AT else ""
        if facts.context:
            add(4, f"context {context_bar(full)}", style)
            add(2, f"{status.used:,} of {facts.context:,}" + (f" · {full:.0%} full" if full >= WARN_AT else ""), style)
        else:
            add(4, "context unknown")
            add(2, f"{status.used:,} tokens" if status.used else "")
        add(7, f"cache {size(status.used * facts.kv_bytes_per_token)}" if facts.kv_bytes_per_token else "")
    add(0, activity(status), palette.chosen if busy else "")
    if status.waiting:
        add(3, "your message waits")
    if status.doing in ("reading", "writing"):
        add(3, "Esc stops", palette.muted)
    add(6, "F1 help", palette.muted)
    return found


def fitted(found: Sequence[tuple[int, Text]], width: int) -> Text:
    """Parts on one line; those of the highest rank are left out until it fits."""
    kept = list(found)
    while len(kept) > 1 and sum(cell_len(text.plain) + 3 for _, text in kept) - 3 > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    line = Text(" · ", end="").join([text for _, text in kept])
    line.truncate(width, overflow="ellipsis")
    return line


class StatusLine(Widget):
    """One line, drawn again only when it says something else."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._line = Text(end="")
        self._shown_at = 0.0
        self._shown: tuple[object, ...] = ()

    def show(self, status: Status) -> None:
        state = (status.doing, status.notice, status.waiting, status.unsaved, self.size.width)
        now = time.monotonic()
        if status.doing == "writing" and state == self._shown and now - self._shown_at < _COUNTING_S:
            return
        self._shown, self._shown_at = state, now
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        width = max(self.size.width, 10)
        if status.notice:
            line = fitted([(0, Text(status.notice, palette.chosen, end=""))], width)
        else:
            line = fitted(parts(status, palette), width)
        if line != self._line or line.spans != self._line.spans:
            self._line = line
            self.refresh()

    def restyle(self) -> None:
        """The theme has changed."""
        self._line = Text(end="")
        self._shown = ()

    @property
    def text(self) -> str:
        return self._line.plain

    def render(self) -> Text:
        return self._line


class TitleLine(Widget):
    """The conversation's title, and at the right its model and profile."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._left = self._right = ""

    def show(self, left: str, right: str) -> None:
        if (left, right) != (self._left, self._right):
            self._left, self._right = left, right
            self.refresh()

    def render(self) -> Text:
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        width = self.size.width
        left, right = Text(self._left, "bold", end=""), Text(self._right, palette.muted, end="")
        if cell_len(self._right) > width // 2:
            right.truncate(width // 2, overflow="ellipsis")
        left.truncate(max(width - cell_len(right.plain) - 1, 0), overflow="ellipsis")
        room = width - cell_len(left.plain) - cell_len(right.plain)
        return Text.assemble(left, " " * max(room, 0), right, end="")
