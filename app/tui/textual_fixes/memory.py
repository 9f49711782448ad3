"""What Textual 8.2.8 keeps of widgets that are gone, let go.

StylesCache.get_inner_outer has an lru_cache on a method: its 1,024 entries hold their `self`, and with it every line
that a closed panel had drawn, some 50 KB a widget. It does not look at `self`: one cache by colours serves them all.
"""

from functools import lru_cache
from typing import Any

from textual._styles_cache import StylesCache
from textual.color import Color
from textual.style import Style


@lru_cache(1024)
def _inner_outer(base_background: Color, background: Color) -> tuple[Style, Style]:
    return Style(background=base_background + background), Style(background=base_background)


def _of_any_cache(_: Any, base_background: Color, background: Color) -> tuple[Style, Style]:
    return _inner_outer(base_background, background)


def let_go() -> None:
    """Make Textual forget closed widgets from now on."""
    StylesCache.get_inner_outer = _of_any_cache  # type: ignore[method-assign,assignment]
