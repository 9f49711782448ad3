"""Colours of code. Pygments is imported when the first code is drawn."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from rich.style import Style
from rich.text import Span, Text

from dslite.app.tui.style.palette import Palette

MOST_CHARACTERS = 200_000  # beyond that, colours are not worth the wait


_ALIASES = {"patch": "diff", "udiff": "diff"}


@lru_cache(maxsize=32)
def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(_ALIASES.get(language, language), stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def highlight(code: str, language: str, palette: Palette) -> list[Text]:
    """The lines of a code block with colours; plain where the language is not known."""
    lexer = _lexer(language) if language and len(code) <= MOST_CHARACTERS else None
    if lexer is None:
        return [Text(line, end="") for line in code.split("\n")]
    lines: list[Text] = []
    parts: list[str] = []
    spans: list[Span] = []
    length = 0
    for kind, value in _tokens(lexer, f"{code}\n"):  # rules of some lexers, as of diffs, want the line end
        style = _style(kind, palette)
        for place, part in enumerate(value.split("\n")):
            if place:
                lines.append(Text("".join(parts), end="", spans=spans))
                parts, spans, length = [], [], 0
            if part:
                parts.append(part)
                if style:
                    spans.append(Span(length, length + len(part), style))
                length += len(part)
    lines.append(Text("".join(parts), end="", spans=spans))
    return lines[: code.count("\n") + 1]


def _tokens(lexer: Any, code: str) -> Iterator[tuple[Any, str]]:
    # Without get_tokens: it would normalise the text, and lines must stay what they are.
    for _, kind, value in lexer.get_tokens_unprocessed(code):
        yield kind, value


def _style(kind: Any, palette: Palette) -> Style | str:
    for depth in (2, 1):
        if len(kind) >= depth and (style := palette.of_token.get(".".join(kind[:depth]))):
            return style
    return ""
