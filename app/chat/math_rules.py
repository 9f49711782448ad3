"""LaTeX as tokens of its own in markdown-it: `math_inline` and `math_block`, whose content is the source as written.

Inside of mathematics `_`, `*` and a backslash are LaTeX, not Markdown. Delimiters: `\\(…\\)`, `\\[…\\]`, `$$…$$`, `$…$`
and `\\begin{name}…\\end{name}`. What opens with a backslash and is not closed yet is mathematics up to the end of its
block: the text of an answer that still grows looks the same before and after the closing delimiter arrives. A single
dollar sign is also a currency: Pandoc's rule applies (no space inside of the signs, no digit behind the closing one),
with letters treated like digits.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline

_BEGIN = re.compile(r"\\begin\{([A-Za-z]+\*?)\}")
_DOLLARS = re.compile(r"\$\$(?=[^$])(?:\\.|[^$\\]|\$(?!\$))+?\$\$(?!\$)", re.DOTALL)
_DOLLAR = re.compile(r"\$(?![\s$])(?:\\.|[^$\\`])*?(?<![\s\\])\$(?![\w$])", re.DOTALL)
_CLOSING = {"\\(": "\\)", "\\[": "\\]"}


def add_math(md: "MarkdownIt") -> None:
    """Register the rules with a parser, ahead of those that read the same characters."""
    interrupts = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    md.block.ruler.before("fence", "math_block", _math_block, interrupts)  # type: ignore[arg-type]
    md.inline.ruler.before("escape", "math_inline", _math_inline)


def _math_inline(state: "StateInline", silent: bool) -> bool:
    end = _inline_end(state.src, state.pos, state.posMax)
    if end is None:
        return False
    if not silent:
        token = state.push("math_inline", "", 0)
        token.content = state.src[state.pos : end]
    state.pos = end
    return True


def _inline_end(source: str, start: int, limit: int) -> int | None:
    """The offset behind the mathematics that begins at `start`, or None where none begins."""
    if source[start] == "$":
        if start and (source[start - 1].isalnum() or source[start - 1] == "$"):
            return None
        match = (_DOLLARS if source.startswith("$$", start) else _DOLLAR).match(source, start, limit)
        return match.end() if match else None
    if source[start] != "\\":
        return None
    closing = _closing_of(source, start)
    if closing is None:
        return None
    end = source.find(closing, start + 2, limit)
    return limit if end < 0 else end + len(closing)


def _closing_of(source: str, start: int) -> str | None:
    """The delimiter that closes the one at `start`."""
    if begin := _BEGIN.match(source, start):
        return f"\\end{{{begin[1]}}}"
    return _CLOSING.get(source[start : start + 2])


def _math_block(state: "StateBlock", first: int, last: int, silent: bool) -> bool:
    """A block that begins with display mathematics.

    With the opening delimiter alone on its line it reaches to the closing one, like a code fence. Otherwise it ends
    at a blank line, too, which LaTeX forbids in mathematics.
    """
    if state.is_code_block(first):
        return False
    start = state.bMarks[first] + state.tShift[first]
    opening = "$$" if state.src.startswith("$$", start) else state.src[start : start + 2]
    closing = "$$" if opening == "$$" else _closing_of(state.src, start) if opening != "\\(" else None
    if closing is None or state.src.startswith("$$$", start):
        return False
    end = _block_end(state, first, last, len(opening), closing)
    if end is None:
        return False
    if silent:
        return True
    token = state.push("math_block", "", 0)
    token.content = state.getLines(first, end, state.blkIndent, False)
    token.map = [first, end]
    state.line = end
    return True


def _block_end(state: "StateBlock", first: int, last: int, opening: int, closing: str) -> int | None:
    """The line behind the block, or None where text follows the closing delimiter in the first line: a paragraph.

    Only the first line decides whether a block begins, so that a growing text never takes a beginning back.
    """
    start = state.bMarks[first] + state.tShift[first] + opening
    text = state.src[start : state.eMarks[first]]
    before, found, behind = text.partition(closing)
    if found:
        return first + 1 if not behind.strip(" \t.,;:") else None
    alone = not before.strip()
    for line in range(first + 1, last):
        if _ends_before(state, line, blank_lines=alone):
            return line
        if closing in state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]]:
            return line + 1
    return last


def _ends_before(state: "StateBlock", line: int, *, blank_lines: bool) -> bool:
    """Whether a block ends before a line: a blank one, or one that is outside of its list item."""
    return not blank_lines if state.isEmpty(line) else state.sCount[line] < state.blkIndent
