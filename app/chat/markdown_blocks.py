"""Markdown, cut into blocks while it streams.

Only the last block can still change, so only it is drawn again as text arrives. A list is cut at its items and a code
fence holds plain lines: no block that grows for thousands of tokens needs parsing anew.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

Kind = Literal["text", "item", "fence", "table"]

_FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}(?=[^`]*$)|~{3,})\s*(?P<info>.*)$")
_ITEM = re.compile(r"^ {0,3}(?:[-*+]|\d{1,9}[.)])(?: +|$)")
_RULE = re.compile(r"^ {0,3}([-*_])(?: *\1){2,} *$")
_HEADING = re.compile(r"^ {0,3}#{1,6}(?: |$)")
_UNDERLINE = re.compile(r"^ {0,3}(?:=+|-+) *$")
_TABLE_RULE = re.compile(r"^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_LINE_END = re.compile(r"\r\n|\r|\n")
_MAX_INDENT = 8


@dataclass
class Block:
    """A piece of an answer. A fence's lines are its code alone; `info` is what stands behind the fence's marks."""

    kind: Kind
    lines: list[str] = field(default_factory=list)
    info: str = ""
    indent: int = 0
    gap: bool = True  # a blank line before it
    closed: bool = False
    number: int = 0  # of a fence, counted from 1 within the message

    @property
    def source(self) -> str:
        return "\n".join(self.lines)

    @property
    def language(self) -> str:
        """The first word behind the marks."""
        return language_of(self.info)


class Splitter:
    """Takes text as it comes; `blocks` is always what it amounts to so far."""

    def __init__(self, text: str = "") -> None:
        self.blocks: list[Block] = []
        self.first_changed = 0  # index of the first block that the last feed may have changed
        self._line = ""
        self._mark = ""  # of the open fence
        self._blank = False
        self._in_list = False
        self._fences = 0
        self._undo: tuple[int, int, bool, str, bool, bool, int] | None = None
        if text:
            self.feed(text)

    def feed(self, text: str) -> None:
        """Append text."""
        self._take_back()
        self.first_changed = max(len(self.blocks) - 1, 0)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._take(line)
        if self._line:
            self._take_for_now(self._line)

    def finish(self) -> None:
        """No more text comes: what was open is closed."""
        self._take_back()
        self.first_changed = max(len(self.blocks) - 1, 0)
        if self._line:
            self._take(self._line)
            self._line = ""
        if self.blocks:
            self.blocks[-1].closed = True

    def _take_for_now(self, line: str) -> None:
        """Show a line that may still grow; `_take_back` undoes it."""
        last = self.blocks[-1] if self.blocks else None
        self._undo = (
            len(self.blocks),
            len(last.lines) if last else 0,
            bool(last and last.closed),
            self._mark,
            self._blank,
            self._in_list,
            self._fences,
        )
        self._take(line, whole=False)

    def _take_back(self) -> None:
        if self._undo is None:
            return
        count, size, closed, self._mark, self._blank, self._in_list, self._fences = self._undo
        self._undo = None
        del self.blocks[count:]
        if self.blocks:
            del self.blocks[-1].lines[size:]
            self.blocks[-1].closed = closed

    @property
    def _open(self) -> Block | None:
        return self.blocks[-1] if self.blocks and not self.blocks[-1].closed else None

    def _start(self, kind: Kind, lines: list[str], *, indent: int = 0, info: str = "", tight: bool = False) -> None:
        gap = bool(self.blocks) and (self._blank or not tight)
        if self.blocks:
            self.blocks[-1].closed = True
        self.blocks.append(Block(kind, lines, info, min(indent, _MAX_INDENT), gap=gap))
        self._blank = False

    def _take(self, line: str, *, whole: bool = True) -> None:
        if self._mark:
            self._take_code(line)
        elif not line.strip():
            self._take_blank()
        elif (fence := _FENCE.match(line)) and (len(fence["indent"]) < 4 or self._in_list):
            self._fences += 1
            self._start("fence", [], indent=len(fence["indent"]), info=fence["info"], tight=self._in_list)
            self.blocks[-1].number = self._fences
            self._mark = fence["mark"]
        elif self._is_table_line(line, whole):
            self._take_table_line(line)
        else:
            self._take_text(line)

    def _take_code(self, line: str) -> None:
        block = self.blocks[-1]
        mark = line.strip()
        if mark.startswith(self._mark) and not mark.strip(self._mark[0]):
            block.closed = True
            self._mark = ""
            return
        block.lines.append(_without_indent(line, block.indent))

    def _take_blank(self) -> None:
        self._blank = True
        if self._open and self._open.kind != "item":
            self._open.closed = True

    def _is_table_line(self, line: str, whole: bool) -> bool:
        block = self._open
        if block is None or "|" not in line:
            return False
        if block.kind == "table":
            return True
        return whole and block.kind == "text" and "|" in block.lines[-1] and bool(_TABLE_RULE.match(line))

    def _take_table_line(self, line: str) -> None:
        block = self.blocks[-1]
        if block.kind == "table":
            block.lines.append(line)
            return
        header = block.lines.pop()
        tight = bool(block.lines)
        if not block.lines:
            self._blank = self.blocks.pop().gap
            self.first_changed = min(self.first_changed, len(self.blocks))
        self._start("table", [header, line], tight=tight)

    def _take_text(self, line: str) -> None:
        block, indent = self._open, len(line) - len(line.lstrip(" "))
        if _RULE.match(line) and not (block and block.kind == "text" and _UNDERLINE.match(line)):
            self._in_list = False
            self._start("text", [line])
            self.blocks[-1].closed = True
        elif _ITEM.match(line) and not (block and block.kind == "item" and indent >= 2):
            self._start("item", [line], tight=self._in_list)
            self._in_list = True
        elif _HEADING.match(line):
            self._in_list = False
            self._start("text", [line])
            self.blocks[-1].closed = True
        elif block and block.kind == "item" and (indent >= 2 or not self._blank):
            block.lines += [""] if self._blank else []
            block.lines.append(line)
            self._blank = False
        elif block and block.kind == "text" and line.startswith(">") == block.lines[0].startswith(">"):
            block.lines.append(line)
        else:
            self._in_list = self._in_list and indent >= 2
            if self._in_list:
                self._start("text", [line.lstrip()], indent=indent, tight=True)
            else:
                self._start("text", [line])


def _without_indent(line: str, most: int) -> str:
    return line[min(len(line) - len(line.lstrip(" ")), most) :]


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block without its fences, the indentation of its list item and the marks of its quotation.

    `text` has LF line ends, one behind its last line. `closed` is False where the text ends before the closing fence.
    """

    language: str
    text: str
    closed: bool


def code_blocks(text: str) -> list[CodeBlock]:
    """Every fenced code block of a Markdown text, in order, wherever it stands (CommonMark, section 4.5)."""
    tokens = parser().parse(text)
    size = len(_LINE_END.split(text.rstrip()))
    return [_code_block(token, size) for token in tokens if token.type == "fence"]


def _code_block(token: "Token", size: int) -> CodeBlock:
    """A block of a text whose last line with text is number `size`, counted from 1."""
    assert token.map is not None
    first, end = token.map
    code = token.content
    if code and not code.endswith("\n"):
        code += "\n"
    has_closing_fence = end - first == code.count("\n") + 2
    return CodeBlock(language_of(token.info), code, closed=has_closing_fence or end < size)


def language_of(info: str) -> str:
    """The first word behind the opening fence."""
    words = info.split()
    return words[0].strip("{}.") if words else ""


@lru_cache(maxsize=1)
def parser() -> "MarkdownIt":
    """The one parser of Markdown: CommonMark with tables, strikethrough and mathematics; HTML is text.

    markdown-it is imported with the first text, after the first picture.
    """
    from markdown_it import MarkdownIt

    from dslite.app.chat.math_rules import add_math

    md = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    add_math(md)
    return md
