"""The one parser of Markdown: CommonMark with tables, strikethrough and mathematics.

Screen, `/copy N` and `complete -x` use it, so that they agree about what is a code block. Differences from CommonMark:
HTML blocks keep their text, HTML inside of a line is text, and link definitions are shown like any paragraph, because
each block is drawn by itself. markdown-it is imported with the first text, after the first picture.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_MAX_NESTING = 60


@lru_cache(maxsize=1)
def parser() -> "MarkdownIt":
    """The parser. Its inline tokens know their place in the source: `token.meta["at"]`."""
    from markdown_it import MarkdownIt
    from markdown_it.parser_inline import ParserInline

    from dslite.app.chat.math_rules import add_math

    class PlacedInline(ParserInline):
        """ParserInline.tokenize, with the offset in the source added to each token."""

        def tokenize(self, state: "StateInline") -> None:
            rules, end, most = self.ruler.getRules(""), state.posMax, state.md.options["maxNesting"]
            while state.pos < end:
                at, waiting, count = state.pos, len(state.pending), len(state.tokens)
                if state.level < most and any(rule(state, False) for rule in rules):
                    if len(state.tokens) > count:
                        _place(state, count, at, waiting)
                else:
                    state.append_pending(state.src[at])
                    state.pos += 1
            if state.pending:
                waiting = len(state.pending)
                state.pushPending().meta["at"] = state.pos - waiting

    md = MarkdownIt()
    md.inline = PlacedInline()
    md.configure("commonmark", {"maxNesting": _MAX_NESTING}).enable(["strikethrough", "table"])
    md.disable(["html_inline", "reference"])
    md.inline.ruler2.disable("fragments_join")  # joined tokens would lose their places
    add_math(md)
    return md


def _place(state: "StateInline", first: int, at: int, waiting: int) -> None:
    """Set the place of the tokens that a rule has pushed for the source from `at` to `state.pos`.

    `waiting`: characters of text before `at` that had not become a token yet.
    """
    tokens = state.tokens[first:]
    if waiting and tokens[0].type == "text":
        tokens.pop(0).meta["at"] = at - waiting
    for token in tokens:
        if token.type == "code_inline":
            markup, content = len(token.markup), len(token.content)
            token.meta["at"] = at + markup + (state.pos - at - 2 * markup > content)
        elif "at" not in token.meta:
            token.meta["at"] = at
            at += 1 if token.type == "link_open" else len(token.content)


def parse_inline(source: str) -> "list[Token]":
    """The inline tokens of a paragraph, heading or table cell."""
    md = parser()
    return md.inline.parse(source, md, {}, [])


def parse_blocks(source: str) -> "list[Token]":
    """The block tokens of a text with LF line ends and without NUL; the content of inline tokens is not parsed."""
    md, tokens = parser(), []  # type: ignore[var-annotated]
    md.block.parse(source, md, {}, tokens)
    return tokens
