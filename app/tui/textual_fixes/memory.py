"""Frees what Textual 8.2.8 keeps of closed widgets.

StylesCache.get_inner_outer has an lru_cache on a method: its 1,024 entries hold their `self`, and with it every line
that a closed panel had drawn, some 50 KB a widget. The method does not use `self`: one cache by colours is enough.
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


def free_closed_widgets() -> None:
    """Replace the cache, for all widgets from now on."""
    StylesCache.get_inner_outer = _of_any_cache  # type: ignore[method-assign,assignment]
