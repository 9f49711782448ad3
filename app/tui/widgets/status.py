"""The status line: what the model is doing, its device, how full the context is; and the title line."""

import time
from collections.abc import Sequence

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from dslite.app.chat.status import WARN_AT, ChatStatus, ModelState, ReplyState
from dslite.app.terminal.progress_text import loading_text, reading_text
from dslite.app.tui.style.palette import Palette
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.events import Loading
from dslite.runtime.units import size_text

_BAR = 8
_COUNTING_S = 0.25  # seconds between two drawings of numbers that change with every token: faster ones cannot be read


def activity(status: ChatStatus) -> str:
    """What the model is doing, with its progress."""
    match status.model:
        case ModelState.STARTING:
            return "looking for the model"
        case ModelState.LOADING:
            return _loading(status)
        case ModelState.NONE:
            return "no model"
    match status.reply:
        case ReplyState.QUEUED | ReplyState.PREFILLING:
            return _prefilling(status)
        case ReplyState.DECODING if status.thinking:
            return f"thinking · {status.thinking:,} tokens"
        case ReplyState.DECODING:
            return f"{status.rate:,.0f} tok/s" if status.rate >= 10 else f"{status.rate:,.1f} tok/s"
        case ReplyState.STOPPING:
            return "stopped"
    return f"{status.rate:,.0f} tok/s last" if status.rate else "ready"


def _loading(status: ChatStatus) -> str:
    event = status.loading
    if event is None or (isinstance(event, Loading) and not event.total_bytes):
        return "starting the engine"
    return loading_text(event)


def _prefilling(status: ChatStatus) -> str:
    return reading_text(status.prefilling) if status.prefilling is not None else "reading"


def where(stats: ModelStats) -> str:
    """The device of the model, with its experts where not all fit there."""
    device = {"cuda": "GPU", "mps": "GPU", "cpu": "CPU"}.get(stats.device.split(":")[0], stats.device)
    slots = stats.experts.get("slots", 0)
    if stats.experts_per_layer and 0 < slots < stats.experts_per_layer:
        return f"{device} {slots}/{stats.experts_per_layer} experts"
    return device


def size(count: int) -> str:
    """A short size: from ten of a unit on without a decimal."""
    text = size_text(count)
    number, _, unit = text.partition(" ")
    return f"{float(number):.0f} {unit}" if float(number) >= 10 else text


def context_bar(fullness: float) -> str:
    filled = min(round(fullness * _BAR), _BAR)
    return "▰" * filled + "▱" * (_BAR - filled)


def parts(status: ChatStatus, palette: Palette) -> list[tuple[int, Text]]:
    """The line's parts in order, each with its rank: where they do not fit, the highest rank is left out first."""
    loading = status.model in (ModelState.STARTING, ModelState.LOADING)
    generating = status.model is ModelState.READY and status.reply in (ReplyState.PREFILLING, ReplyState.DECODING)
    found: list[tuple[int, Text]] = []

    def add(rank: int, text: str, style: Style | str = "") -> None:
        if text:
            found.append((rank, Text(text, style, end="")))

    add(1, status.unsaved, palette.warning)
    if stats := status.stats:
        add(5, where(stats))
        full = status.fullness
        style = palette.warning if full >= WARN_AT else ""
        if stats.context:
            add(4, f"context {context_bar(full)}", style)
            add(2, f"{status.used:,} of {stats.context:,}" + (f" · {full:.0%} full" if full >= WARN_AT else ""), style)
        else:
            add(4, "context unknown")
            add(2, f"{status.used:,} tokens" if status.used else "")
        add(7, f"cache {size(status.used * stats.kv_bytes_per_token)}" if stats.kv_bytes_per_token else "")
    add(0, activity(status), palette.chosen if loading or generating else "")
    if status.waiting or (status.reply is ReplyState.QUEUED and status.model is not ModelState.READY):
        add(3, "your message waits")
    if generating:
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
    """One line, drawn again only when its text changes."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._line = Text(end="")
        self._shown_at = 0.0
        self._shown: tuple[object, ...] = ()

    def show(self, status: ChatStatus) -> None:
        width = self.size.width
        state = (status.model, status.reply, status.hint, status.facts, status.waiting, status.unsaved, width)
        now = time.monotonic()
        if status.reply is ReplyState.DECODING and state == self._shown and now - self._shown_at < _COUNTING_S:
            return
        self._shown, self._shown_at = state, now
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        width = max(self.size.width, 10)
        if status.hint:
            line = fitted([(0, Text(status.hint, palette.chosen, end=""))], width)
        elif status.facts and status.idle:
            line = fitted([(0, Text(status.facts, end=""))], width)
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

    ALLOW_SELECT = False

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
