"""What the transcript is made of: messages, cut into pieces that are drawn when they are looked at.

A piece that was never on screen has an estimated height, which costs almost nothing. So opening or resizing a long
conversation draws one screen, not all of it.
"""

from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text
from textual.strip import Strip

from dslite.app.chat.markdown_blocks import Block, Splitter
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.highlight import highlight
from dslite.app.tui.transcript.markdown import Line, code_lines, draw, fence_head
from dslite.app.tui.transcript.sanitize import inert
from dslite.app.tui.transcript.wrapping import wrap_plain

Speaker = Literal["user", "assistant", "system", "notice"]
_INDENT = 2
_MOST_AT_ONCE = 80  # lines of code that are coloured as a whole without delay


@dataclass(eq=False)
class TranscriptItem:
    """A message on screen. `key` names it to the conversation; `branch` is (which, of how many)."""

    key: int
    speaker: Speaker
    name: str
    text: str = ""
    branch: tuple[int, int] = (1, 1)
    note: str = ""
    growing: bool = False
    pieces: list["RenderBlock"] = field(default_factory=list)
    splitter: Splitter | None = None


@dataclass(eq=False)
class RenderBlock:
    """A head (no block), a block or a note of an entry. `height` is an estimate until `drawn_for` is this layout."""

    entry: TranscriptItem
    block: Block | None = None
    kind: Literal["head", "block", "plain", "note"] = "block"
    height: int = 1
    drawn_for: int = -1  # number of the layout
    strips: list[Strip] | None = None
    done: list[Strip] = field(default_factory=list)  # of an open fence, what its whole lines became
    done_lines: int = 0
    colours: list[Text] | None = None  # of a long closed fence, once a thread has made them

    @property
    def wants_colours(self) -> bool:
        """Whether its colours take so long that a thread should make them."""
        block = self.block
        if block is None or block.kind != "fence" or not block.closed or self.colours is not None:
            return False
        return len(block.lines) > _MOST_AT_ONCE and bool(block.language)


def render_blocks(entry: TranscriptItem) -> list[RenderBlock]:
    """The pieces of an entry from its text; what had been drawn of unchanged blocks is kept."""
    if entry.speaker == "notice":
        return [RenderBlock(entry, kind="note")]
    pieces = [RenderBlock(entry, kind="head")]
    if entry.speaker == "assistant":
        if entry.splitter is None:
            entry.splitter = Splitter(inert(entry.text))
            if not entry.growing:
                entry.splitter.finish()
        pieces += [RenderBlock(entry, block) for block in entry.splitter.blocks]
    elif entry.text:
        pieces.append(RenderBlock(entry, kind="plain"))
    if entry.note:
        pieces.append(RenderBlock(entry, kind="note"))
    return pieces


def estimate(piece: RenderBlock, width: int) -> int:
    """About how many lines a piece takes."""
    if piece.kind == "head":
        return 2
    inner = max(width - _INDENT, 8)
    if piece.kind in ("plain", "note"):
        text = piece.entry.text if piece.kind == "plain" else piece.entry.note
        return sum(-(-max(_cells(line), 1) // inner) for line in text.split("\n")) + (piece.kind == "note")
    block = piece.block
    assert block is not None
    lines = sum(-(-max(_cells(line), 1) // inner) for line in block.lines)
    return lines + (block.kind == "fence") + block.gap


def _cells(line: str) -> int:
    return len(line) if line.isascii() else cell_len(line)


class BlockRenderer:
    """Draws pieces for one width and palette."""

    def __init__(self, width: int, palette: Palette) -> None:
        self.width = width
        self.palette = palette

    def draw(self, piece: RenderBlock) -> list[Strip]:
        """The strips of a piece, each `width` cells wide at most."""
        if piece.kind == "head":
            lines = [[], self._head(piece.entry)]
        elif piece.kind == "plain":
            style = None if piece.entry.speaker == "user" else self.palette.muted
            text = inert(piece.entry.text).rstrip("\n")
            lines = _inset([[Segment(line, style)] for line in wrap_plain(text, self.width - _INDENT)])
        elif piece.kind == "note":
            lines = self._note(piece.entry)
        else:
            assert piece.block is not None
            return self._block(piece, piece.block)
        return self._strips(lines)

    def _strips(self, lines: list[Line]) -> list[Strip]:
        return [Strip(Segment.apply_style(line, self.palette.base)) for line in lines]

    def _head(self, entry: TranscriptItem) -> Line:
        style = {"user": self.palette.user, "assistant": self.palette.assistant}.get(entry.speaker, self.palette.muted)
        name = inert(entry.name)
        which, count = entry.branch
        if count < 2:
            return [Segment(name, style)]
        walk = f"◂ {which} of {count} ▸"
        room = self.width - cell_len(name) - len(walk)
        return [Segment(name, style), Segment(" " * max(room, 1) + walk, self.palette.muted)]

    def _note(self, entry: TranscriptItem) -> list[Line]:
        text = entry.text if entry.speaker == "notice" else entry.note
        style = self.palette.warning if text.startswith("!") else self.palette.muted
        lines = wrap_plain(inert(text.removeprefix("!").strip()), self.width - _INDENT)
        return [[], *_inset([[Segment(line, style)] for line in lines])]

    def _block(self, piece: RenderBlock, block: Block) -> list[Strip]:
        inner = max(self.width - _INDENT, 8)
        gap: list[Line] = [[]] if block.gap else []
        if block.kind == "fence" and (not block.closed or piece.wants_colours or piece.colours):
            return self._strips(gap) + self._long_fence(piece, block, inner)
        return self._strips(gap + _inset(draw(block, inner, self.palette)))

    def _long_fence(self, piece: RenderBlock, block: Block, width: int) -> list[Strip]:
        """Whole lines of an open fence are coloured and kept, each by itself; only the last is drawn again."""
        width -= block.indent

        def strips(lines: list[Line]) -> list[Strip]:
            return self._strips(
                _inset([[Segment(" " * block.indent), *line] if block.indent else line for line in lines])
            )

        def coloured(line: str) -> list[Line]:
            text = highlight(line, block.language, self.palette)[0]
            return code_lines(text, width, self.palette)

        head = strips([fence_head(block, width, self.palette)])
        if piece.colours:
            return head + [strip for text in piece.colours for strip in strips(code_lines(text, width, self.palette))]
        if piece.drawn_for < 0:
            piece.done, piece.done_lines = [], 0
        whole = len(block.lines) - (not block.closed)
        for line in block.lines[piece.done_lines : whole]:
            piece.done += strips(coloured(line))
        piece.done_lines = max(piece.done_lines, whole)
        last = [strip for line in block.lines[piece.done_lines :] for strip in strips(coloured(line))]
        return head + piece.done + last


def _inset(lines: list[Line]) -> list[Line]:
    return [[Segment(" " * _INDENT), *line] for line in lines]
