"""NO_COLOR: reverse and dim in place of colours; no colour reaches the terminal.

Textual's own way with NO_COLOR turns colours into greys and paints the whole screen in them.
"""

from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_STANDS_OUT = 0.15  # of full brightness: carets, selections and chosen rows are further from what is around them,
_RECEDES = 0.4  # and rules, frames and whatever lies behind a panel are nearer to it


class NoColorFilter(LineFilter):
    """Attributes in place of colours."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            Segment(text, None if style is None else _without_colour(style, background), control)
            for text, style, control in segments
        ]


@lru_cache(4096)
def _without_colour(style: Style, background: Color) -> Style:
    around = background.brightness
    behind = _brightness(style.bgcolor, around)
    stands_out = abs(behind - around) > _STANDS_OUT
    recedes = style.color is not None and abs(_brightness(style.color, 1 - round(behind)) - behind) < _RECEDES
    attributes = Style(reverse=True if stands_out else None, dim=True if recedes else None)
    return style.without_color + attributes + Style.from_meta(style.meta)  # where a click or a selection is


def _brightness(colour: RichColor | None, default: float) -> float:
    if colour is None or colour.is_default:
        return default
    return Color.from_rich_color(colour).brightness
