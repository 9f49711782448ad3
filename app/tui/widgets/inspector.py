"""The inspector (F2): experts, slots, cache, speed and memory of the model while it runs."""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from dslite.app.chat.status import ChatStatus
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.source_text import segments
from dslite.app.tui.widgets.status import size
from dslite.runtime.chat.protocol import ModelStats

_SHADES = " ·░▒▓█"
_SPARKS = "▁▂▃▄▅▆▇█"
_LABEL = 4


class Inspector(ScrollView, can_focus=False):
    """A column of figures beside the chat; the whole screen where it is narrow."""

    def __init__(self, status: ChatStatus) -> None:
        super().__init__(id="inspector")
        self._status = status
        self._strips: list[Strip] = []
        self._shown: object = None

    def show(self) -> None:
        """Draw again where something has changed."""
        status, width = self._status, self.scrollable_content_region.width
        state = (status.stats, status.used, len(status.rates), status.rate, width, self.app.theme)
        if state == self._shown or width < 8:
            return
        self._shown = state
        palette = Palette.of_theme(self.app.theme_variables, self.rich_style)
        lines = self._lines(palette, width)
        self._strips = [Strip(Segment.apply_style(segments(line), self.rich_style)) for line in lines]
        self.virtual_size = Size(width, len(self._strips))
        self.refresh()

    def on_resize(self) -> None:
        self.show()

    @property
    def text(self) -> str:
        """All of it, as plain lines."""
        return "\n".join(strip.text for strip in self._strips)

    def render_line(self, y: int) -> Strip:
        width, line = self.scrollable_content_region.width, y + self.scroll_offset.y
        strip = self._strips[line] if line < len(self._strips) else Strip([])
        return strip.adjust_cell_length(width, self.rich_style)

    def _lines(self, palette: Palette, width: int) -> list[Text]:
        stats = self._status.stats
        if stats is None:
            return [Text("Inspector", "bold"), Text(), Text("The model is not loaded yet.", palette.muted)]
        rates = list(self._status.rates)
        return [
            Text("Inspector", "bold"),
            *_section("Experts used in this chat", palette),
            *expert_grid(stats, width, palette),
            *_section("Slots", palette),
            *slot_lines(stats),
            *_section("Cache", palette),
            *cache_lines(stats, self._status.used, width, palette),
            *_section("Speed", palette),
            *speed_lines(rates, width, palette),
            *_section("Memory", palette),
            *memory_lines(stats, width, palette),
        ]


def _section(title: str, palette: Palette) -> list[Text]:
    return [Text(), Text(title, palette.chosen)]


def expert_grid(stats: ModelStats, width: int, palette: Palette) -> list[Text]:
    """Rows are layers, columns experts; the darker, the more often an expert was chosen among those of its layer.

    Each row has its own scale: of a prompt the last layer computes the last token alone.
    """
    uses = stats.uses
    if not uses:
        return [Text("not counted on this device", palette.muted)]
    per_cell = max(1, -(-len(uses[0]) // max(width - _LABEL, 1)))
    cells = [_sums(row, per_cell) for row in uses]
    lines = [
        Text.assemble((f"{stats.first_moe_layer + layer:>2}  ", palette.muted), _shades(row))
        for layer, row in enumerate(cells)
    ]
    total = sum(map(sum, uses))
    used = sum(value > 0 for row in uses for value in row)
    count = sum(map(len, uses))
    legend = f"{used:,} of {count:,} experts used, {total:,} times"
    per = f", {per_cell} a column" if per_cell > 1 else ""
    return [*lines, Text(f"layer ↓  experts →{per}", palette.muted), Text(legend, palette.muted)]


def _sums(row: Sequence[int], per_cell: int) -> list[int]:
    return [sum(row[start : start + per_cell]) for start in range(0, len(row), per_cell)]


def _shades(row: Sequence[int]) -> str:
    """Blank for never, then by shares of the most used one: darkness, so that no colour is needed."""
    top, most = len(_SHADES) - 1, max(row, default=0)
    return "".join(_SHADES[-(-value * top // most)] if value else _SHADES[0] for value in row)


def slot_lines(stats: ModelStats) -> list[Text]:
    """The experts that a layer has in memory, and the hit rate of its slots."""
    experts = stats.experts
    slots, hits, misses = (experts.get(key, 0) for key in ("slots", "hits", "misses"))
    if not slots:
        return [Text("none" if stats.experts else "not known")]
    held = f"{slots} of {stats.experts_per_layer} experts a layer"
    if slots >= stats.experts_per_layer:
        return [Text(f"{held}: all are in place")]
    looked = hits + misses
    rate = f"{hits / looked:.1%} hits" if looked else "nothing looked up yet"
    moved = experts.get("bytes_moved", 0)
    return [Text(held), Text(f"{rate} · {hits:,} hits · {misses:,} misses"), Text(f"{size(moved)} moved")]


def cache_lines(stats: ModelStats, used: int, width: int, palette: Palette) -> list[Text]:
    """The size of the latent cache, compared with a cache of plain attention."""
    ours, plain = stats.kv_bytes_per_token, stats.plain_kv_bytes_per_token
    if not ours:
        return [Text("not known", palette.muted)]
    lines = [Text(f"{ours / 1000:.1f} KB a token · {size(ours * used)} for {used:,} tokens")]
    if plain:
        bar = max(width - 10, 4)
        filled = max(round(bar * ours / plain), 1)
        lines += [
            Text.assemble("latent  ", ("█" * filled, palette.chosen)),
            Text.assemble("plain   ", ("█" * bar, palette.muted)),
            Text(f"plain attention: {plain / 1000:.1f} KB, {plain / ours:.1f}×", palette.muted),
        ]
    return lines


def speed_lines(rates: Sequence[float], width: int, palette: Palette) -> list[Text]:
    """Tokens per second over time."""
    if not rates:
        return [Text("nothing written yet", palette.muted)]
    room = max(width - 2, 4)
    step = max(len(rates) / room, 1.0)
    shown = [rates[int(place * step)] for place in range(min(len(rates), room))]
    most = max(shown) or 1.0
    line = "".join(_SPARKS[min(int(value / most * len(_SPARKS)), len(_SPARKS) - 1)] for value in shown)
    return [Text(line, palette.chosen), Text(f"now {rates[-1]:,.1f} · most {max(rates):,.1f} tok/s", palette.muted)]


def memory_lines(stats: ModelStats, width: int, palette: Palette) -> list[Text]:
    """Bytes by part."""
    memory = stats.memory
    named = [
        ("weights", memory.get("weights_bytes", 0)),
        ("cache in use", memory.get("kv_bytes", 0)),
        ("most host memory", memory.get("peak_rss_bytes", 0)),
        ("most GPU memory", memory.get("peak_vram_bytes", 0)),
    ]
    known = [(name, count) for name, count in named if count]
    most = max((count for _, count in known), default=1)
    bar = max(width - 28, 4)
    return [
        Text.assemble(f"{name:<17}{size(count):>8}  ", ("█" * max(round(bar * count / most), 1), _style(name, palette)))
        for name, count in known
    ]


def _style(name: str, palette: Palette) -> Style:
    return palette.chosen if name == "weights" else palette.bar
