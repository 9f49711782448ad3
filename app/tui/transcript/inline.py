"""Markdown inside a line: emphasis, code, links. Nothing in it is markup of Rich or Textual, and HTML is plain text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from dslite.app.chat.markdown_blocks import parser
from dslite.app.tui.style.palette import Palette

if TYPE_CHECKING:
    from markdown_it.token import Token


def inline_text(source: str, palette: Palette) -> Text:
    """A line of Markdown with styles."""
    tokens = parser().parseInline(source)
    return styled(tokens[0].children or [], palette) if tokens else Text()


def styled(tokens: Sequence["Token"], palette: Palette) -> Text:
    """Inline tokens as text with styles. The target of a link stands behind its words."""
    text = Text(end="")
    styles: list[Style] = []
    target = ""
    for token in tokens:
        style = Style.combine(styles) if styles else ""
        kind = token.type
        if kind in ("text", "text_special"):
            text.append(token.content, style)
        elif kind == "softbreak":
            text.append(" ")
        elif kind == "hardbreak":
            text.append("\n")
        elif kind == "code_inline":
            text.append(token.content, palette.code)
        elif kind == "image":
            text.append(f"[{token.content}]", palette.link)
            text.append(f" ({token.attrs.get('src', '')})", palette.muted)
        elif kind == "link_open":
            target = str(token.attrs.get("href", ""))
            styles.append(palette.link)
        elif kind.endswith("_open"):
            styles.append(_EMPHASIS.get(token.tag, Style()))
        elif kind.endswith("_close"):
            styles.pop()
            if kind == "link_close" and target and not text.plain.endswith(target):
                text.append(f" ({target})", palette.muted)
        else:
            text.append(token.content, style)
    return text


_EMPHASIS = {"em": Style(italic=True), "strong": Style(bold=True), "s": Style(strike=True)}
