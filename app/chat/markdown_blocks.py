"""Markdown, cut into blocks while it streams.

A block is a leaf of the document: a paragraph, a fence, a table, with the marks of the quotations and list items around
it. Only the last block at the top, or the last item of a list there, can still change: earlier blocks are final,
and the parser reads the text behind them alone. The lines of a fence or table that grows are appended without parsing.
Each line knows its offset in the text, from which copying takes the source.
"""

import re
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from dslite.app.chat.markdown_parser import parse_blocks

if TYPE_CHECKING:
    from markdown_it.token import Token

Kind = Literal["paragraph", "heading", "fence", "code", "table", "math", "html", "rule"]
MarkKind = Literal["quote", "bullet", "number", "open task", "done task"]

_KINDS: dict[str, Kind] = {
    "paragraph_open": "paragraph",
    "heading_open": "heading",
    "fence": "fence",
    "code_block": "code",
    "table_open": "table",
    "math_block": "math",
    "html_block": "html",
    "hr": "rule",
}
_LINE_END = re.compile(r"\r\n|\r|\n")
_CONTAINERS = re.compile(r"[ \t>]*")
_MARKER = re.compile(r"[-+*]|\d{1,9}[.)]")
_TASK = re.compile(r"\[([ xX])\] +(?=\S)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Mark:
    """A container of a block. `text` is a list item's marker as written, `start` its offset in the text."""

    kind: MarkKind
    start: int
    text: str = ""


@dataclass
class Block:
    """A leaf of a Markdown text.

    `lines` are its content without marks, indentation and fences, `offsets` where each begins in the text; [`start`,
    `end`) is the block with all of these. The first `shared` marks are those of the block before.
    """

    kind: Kind
    lines: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    start: int = 0
    end: int = 0
    info: str = ""  # behind an opening fence; the tag of a heading
    marks: tuple[Mark, ...] = ()
    shared: int = 0
    gap: bool = False  # a blank line before it
    closed: bool = False  # it does not grow any more
    number: int = 0  # of a fence: the N of /copy N, from 1; 0 is not shown

    @property
    def source(self) -> str:
        return "\n".join(self.lines)

    @property
    def language(self) -> str:
        return language_of(self.info)


class Splitter:
    """Takes text as it comes; `blocks` is always what it amounts to so far."""

    def __init__(self, text: str = "") -> None:
        self.blocks: list[Block] = []
        self.text = ""
        self.first_changed = 0  # index of the first block that the last feed may have changed
        self._tail = 0  # offset of the text that is parsed again
        self._final = 0  # blocks before it
        self._last_line = 0  # offset of the line that is not complete
        if text:
            self.feed(text)

    def feed(self, text: str) -> None:
        """Append text."""
        self.text += text
        if not self._append_words(text) and not self._append_lines():
            self._parse_tail()

    def finish(self) -> None:
        """No more text comes: the last block is closed."""
        self.first_changed = max(len(self.blocks) - 1, 0)
        if self.blocks:
            self.blocks[-1].closed = True

    def _append_words(self, text: str) -> bool:
        """Lengthen the last line of the paragraph at the end, where it begins like no other block; whether it did.

        A line that begins with a letter stays the text of a paragraph, whatever follows in it.
        """
        block = self.blocks[-1] if self.blocks else None
        if block is None or block.kind != "paragraph" or block.closed or not block.lines or _LINE_END.search(text):
            return False
        start = block.offsets[-1]
        if start < self._last_line or not block.lines[-1][:1].isalpha():
            return False
        block.lines[-1] = self.text[start:].rstrip().replace("\0", "\ufffd")
        block.end = start + len(block.lines[-1])
        self.first_changed = len(self.blocks) - 1
        return True

    def _append_lines(self) -> bool:
        """Append to the open fence or table at the end, where that is all that has happened; return whether it was."""
        block = self.blocks[-1] if self.blocks else None
        if block is None or block.kind not in ("fence", "table") or block.closed or block.marks:
            return False
        if self.text.endswith("\r"):  # half of a line end
            return False
        lines = split_lines(self.text, self._last_line)
        indent = 0
        if block.kind == "fence":
            opening = _FENCE.match(self.text, block.start)
            if opening is None or any(line.strip().startswith(opening[1]) for _, line in lines):
                return False
            indent = block.start - max(self.text.rfind("\n", 0, block.start), self.text.rfind("\r", 0, block.start)) - 1
            if any("\t" in line[:indent] for _, line in lines):
                return False
        elif not all(line.startswith("|") for _, line in lines if line or line is not lines[-1][1]):
            return False
        if block.offsets and block.offsets[-1] >= self._last_line:
            del block.lines[-1], block.offsets[-1]
        for start, line in lines if lines[-1][1] else lines[:-1]:
            skipped = min(len(line) - len(line.lstrip(" ")), indent)
            block.lines.append(line[skipped:] if block.kind == "fence" else line.strip())
            block.offsets.append(start + skipped)
            block.end = start + len(line)
        self._last_line = lines[-1][0]
        self.first_changed = len(self.blocks) - 1
        return True

    def _parse_tail(self) -> None:
        lines = split_lines(self.text, self._tail)
        half = len(lines) > 1 and self.text.endswith("\r")  # a line feed may follow: the line is not complete
        self._last_line = lines[-2 if half else -1][0]
        tokens = parse_blocks("\n".join(line for _, line in lines))
        blocks = _Leaves(self.text, lines, self.blocks[: self._final]).read(tokens)
        old, self.first_changed = self.blocks[self._final :], self._final
        for before, now in zip(old, blocks, strict=False):
            if before != now:
                break
            self.first_changed += 1
        self.first_changed = min(self.first_changed, max(self._final + len(blocks) - 1, 0))
        for place, (before, now) in enumerate(zip(old, blocks, strict=False)):
            if (before.kind, before.start) == (now.kind, now.start):  # the same block: what was drawn of it is kept
                vars(before).update(vars(now))
                blocks[place] = before
        self.blocks[self._final :] = blocks
        self._set_tail(tokens, lines)

    def _set_tail(self, tokens: "list[Token]", lines: list[tuple[int, str]]) -> None:
        """Parse from the last block on, once its first line is complete: what stands before cannot change any more."""
        tops = [token for token in tokens if token.level == 0 and token.nesting >= 0]
        tops += [token for token in tokens if token.type == "list_item_open" and token.level == 1]
        first = max((token.map[0] for token in tops if token.map and self._may_begin(token, lines)), default=0)
        if first == 0 or lines[first][0] >= self._last_line:
            return
        self._tail = lines[first][0]
        self._final += sum(block.start < self._tail for block in self.blocks[self._final :])

    @staticmethod
    def _may_begin(token: "Token", lines: list[tuple[int, str]]) -> bool:
        """Whether text that begins with this block is parsed as it is behind the blocks before."""
        assert token.map is not None
        if token.type == "list_item_open":
            return token.level == 1 and bool(_MARKER.match(lines[token.map[0]][1]))
        return True


class _Leaves:
    """Makes blocks of tokens. `lines` are the parsed lines with their offsets, `before` the blocks above them."""

    def __init__(self, text: str, lines: list[tuple[int, str]], before: list[Block]) -> None:
        self._text, self._lines, self._before = text, lines, before
        self._blocks: list[Block] = []
        self._marks: list[Mark] = []
        self._fences = next((block.number for block in reversed(before) if block.kind == "fence"), 0)
        self._size = max((place for place, (_, line) in enumerate(lines) if line.strip()), default=-1) + 1

    def read(self, tokens: "list[Token]") -> list[Block]:
        """The blocks in order; all but the last are closed."""
        counts: list[int] = []
        for token, following in pairwise([*tokens, None]):
            assert token is not None
            if token.type in ("blockquote_open", "list_item_open"):
                self._marks.append(self._mark(token))
                counts.append(len(self._blocks))
            elif token.type in ("blockquote_close", "list_item_close"):
                if counts.pop() == len(self._blocks):  # an empty item, or one that is nested too deeply to be read
                    self._add("paragraph", self._marks[-1].start, *self._open_lines(token))
                self._marks.pop()
            elif kind := _KINDS.get(token.type):
                self._read_leaf(kind, token, following)
        for block in self._blocks[:-1]:
            block.closed = True
        return self._blocks

    def _open_lines(self, token: "Token") -> tuple[list[str], list[int]]:
        """The line in which the innermost container opens, behind its marker."""
        start, line = self._line_at(self._marks[-1].start)
        place = self._content_start(start, line)
        return [line[place:].strip()], [start + place]

    def _line_at(self, offset: int) -> tuple[int, str]:
        return next(pair for pair in reversed(self._lines) if pair[0] <= offset)

    def _mark(self, token: "Token") -> Mark:
        assert token.map is not None
        start, line = self._lines[token.map[0]]
        if token.type == "blockquote_open":
            place = line.find(">", self._marks[-1].start - start + 1 if self._marks else 0)
            return Mark("quote", start + max(place, 0))
        marker = _MARKER.search(line, self._content_start(start, line))
        assert marker is not None
        return Mark("number" if token.info else "bullet", start + marker.start(), marker[0])

    def _content_start(self, start: int, line: str) -> int:
        """Where a line's content begins, behind the markers of its containers."""
        place = 0
        for mark in self._marks:
            if start <= mark.start < start + len(line):
                place = mark.start - start + len(mark.text or ">")
        match = _CONTAINERS.match(line, place) if any(mark.kind == "quote" for mark in self._marks) else None
        return match.end() if match else len(line) - len(line[place:].lstrip())

    def _read_leaf(self, kind: Kind, token: "Token", following: "Token | None") -> None:
        assert token.map is not None
        first, end = token.map
        numbered = self._lines[first:end]
        if kind == "table":
            places = [self._content_start(start, line) for start, line in numbered]
            content = [line[place:].strip() for (_, line), place in zip(numbered, places, strict=True)]
        elif kind in ("paragraph", "heading"):
            assert following is not None
            content = [text.lstrip() for text in following.content.split("\n")]
        else:
            content = token.content.removesuffix("\n").split("\n") if token.content else []
        if kind == "rule":
            content = ["---"]
        inner = numbered[1:] if kind == "fence" else numbered
        offsets = [start + _place_of(text, line) for text, (start, line) in zip(content, inner, strict=False)]
        start, line = numbered[0]
        self._add(kind, start + self._content_start(start, line), content[: len(offsets)], offsets, token)

    def _add(self, kind: Kind, start: int, lines: list[str], offsets: list[int], token: "Token | None" = None) -> None:
        previous = self._blocks[-1] if self._blocks else self._before[-1] if self._before else None
        if kind == "paragraph" and lines and (task := _TASK.match(lines[0])):
            self._mark_task(done=task[1] != " ", previous=previous, lines=lines, offsets=offsets, size=task.end())
        marks = tuple(self._marks)
        shared = 0
        while previous and shared < min(len(marks), len(previous.marks)) and marks[shared] == previous.marks[shared]:
            shared += 1
        fresh = [mark for mark in marks[shared:] if mark.kind != "quote"]
        block = Block(kind, lines, offsets, min([start, *(mark.start for mark in fresh)]), marks=marks, shared=shared)
        line_start, _ = self._line_at(block.start)
        block.gap = previous is not None and (
            not _in_one_list(previous.marks, marks, shared) or _blank_before(self._text, line_start)
        )
        block.end = offsets[-1] + len(lines[-1]) if offsets else start
        if token is not None and token.map is not None:
            last_start, last = self._lines[max(token.map[1] - 1, token.map[0])]
            block.end = max(block.end, last_start + len(last.rstrip()))
            block.info = token.tag if kind == "heading" else token.info
        if kind == "fence" and token is not None:
            self._fences += 1
            block.number = self._fences
            block.closed = _is_closed(token, self._size)
        self._blocks.append(block)

    def _mark_task(
        self, *, done: bool, previous: Block | None, lines: list[str], offsets: list[int], size: int
    ) -> None:
        """A list item that begins with `[ ]` or `[x]` has a box in place of its bullet."""
        if self._marks and self._marks[-1].kind in ("bullet", "number"):
            if previous is not None and self._marks[-1] in previous.marks:
                return
            self._marks[-1] = replace(self._marks[-1], kind="done task" if done else "open task")
            lines[0] = lines[0][size:]
            offsets[0] += size


def _in_one_list(before: tuple[Mark, ...], marks: tuple[Mark, ...], shared: int) -> bool:
    """Whether two blocks are in the same item of a list, or in items one below the other."""
    pair = [*before[shared : shared + 1], *marks[shared : shared + 1]]
    siblings = len(pair) == 2 and all(mark.kind != "quote" for mark in pair)
    return siblings or any(mark.kind != "quote" for mark in marks[:shared])


def split_lines(text: str, start: int = 0) -> list[tuple[int, str]]:
    """The lines of a text from an offset on, without their ends, each with its offset. NUL becomes U+FFFD."""
    lines = []
    for match in _LINE_END.finditer(text, start):
        lines.append((start, text[start : match.start()].replace("\0", "\ufffd")))
        start = match.end()
    return [*lines, (start, text[start:].replace("\0", "\ufffd"))]


def _place_of(content: str, line: str) -> int:
    """Where a line of content stands in its line of the text. A tab may have become several spaces before it."""
    if line.endswith(content):
        return len(line) - len(content)
    place = line.rfind(content)
    return place if place >= 0 else len(line) - len(content)


def _blank_before(text: str, line_start: int) -> bool:
    """Whether the line above is blank, but for the marks of quotations."""
    end = line_start - 2 if text[:line_start].endswith("\r\n") else line_start - 1
    start = max(text.rfind("\n", 0, max(end, 0)), text.rfind("\r", 0, max(end, 0))) + 1
    return not text[start : max(end, 0)].strip(" \t>")


def _is_closed(token: "Token", size: int) -> bool:
    """Whether a fence has its closing fence, or ends with its container; `size` is the last line with text."""
    assert token.map is not None
    first, end = token.map
    code = token.content.count("\n") + bool(token.content and not token.content.endswith("\n"))
    return end - first == code + 2 or end < size


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
    return [
        CodeBlock(block.language, "".join(f"{line}\n" for line in block.lines), block.closed)
        for block in Splitter(text).blocks
        if block.kind == "fence"
    ]


def language_of(info: str) -> str:
    """The first word behind the opening fence."""
    words = info.split()
    return words[0].strip("{}.") if words else ""
