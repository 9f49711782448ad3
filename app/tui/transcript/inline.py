"""Markdown inside a line: emphasis, code, links, mathematics. Markup of Rich or Textual and HTML are plain text."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from dslite.app.chat.markdown_parser import parse_inline
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.source_text import SourceText

if TYPE_CHECKING:
    from markdown_it.token import Token

_WEB = re.compile(r"https?://[\x21-\x7e]+")
_EMPHASIS = {"em": Style(italic=True), "strong": Style(bold=True), "s": Style(strike=True)}


def inline_text(source: str, offsets: Sequence[int], palette: Palette) -> SourceText:
    """Markdown with styles. `offsets`: where each character of it stands in the message."""
    return _Inline(offsets, palette).read(parse_inline(source))


def _terminal_link(target: str) -> Style:
    """A link that terminals open by themselves (OSC 8), of the web alone."""
    return Style(link=target) if _WEB.fullmatch(target) else Style()


class _Inline:
    """Puts inline tokens together. The target of a link stands behind its words."""

    def __init__(self, offsets: Sequence[int], palette: Palette) -> None:
        self._offsets, self._palette = offsets, palette
        self._result = SourceText(Text(end=""), [])
        self._styles: list[Style] = []

    def read(self, tokens: Sequence["Token"]) -> SourceText:
        target = ""
        for token in tokens:
            kind = token.type
            if kind == "link_open":
                target = str(token.attrs.get("href", ""))
                self._styles.append(self._palette.link + _terminal_link(target))
            elif kind.endswith("_open"):
                self._styles.append(_EMPHASIS.get(token.tag, Style()))
            elif kind.endswith("_close"):
                self._styles.pop()
                if kind == "link_close" and target and not self._result.text.plain.endswith(target):
                    self._result.decorate(f" ({target})", self._palette.muted)
            else:
                self._leaf(token)
        return self._result

    def _leaf(self, token: "Token") -> None:
        style: Style | str = Style.combine(self._styles) if self._styles else ""
        at, content = token.meta.get("at", 0), token.content
        if token.type == "softbreak":
            self._result.append(" ", self._offsets[at : at + 1])
        elif token.type == "hardbreak":
            self._result.decorate("\n")
        elif token.type == "text_special":  # an escape or an entity: its first character stands for all of it
            self._result.append(content, [self._offsets[at]] * len(content), style)
        elif token.type == "image":
            self._result.decorate("[", self._palette.link)
            self._append(content, at + 2, self._palette.link)
            self._result.decorate("]", self._palette.link)
            self._result.decorate(f" ({token.attrs.get('src', '')})", self._palette.muted)
        else:
            self._append(content, at, self._palette.code if token.type == "code_inline" else style)

    def _append(self, content: str, at: int, style: Style | str) -> None:
        offsets = self._offsets[at : at + len(content)]
        if len(offsets) == len(content):
            self._result.append(content, offsets, style)
        else:
            self._result.decorate(content, style)
