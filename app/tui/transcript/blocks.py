"""What the transcript is made of: messages, cut into blocks that are drawn when they come into view.

A block that was never on screen has an estimated height, which costs almost nothing. So opening or resizing a long
conversation draws one screen, not all of it.
"""

from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from dslite.app.chat.markdown_blocks import Block, Splitter, split_lines
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.highlight import highlight
from dslite.app.tui.transcript.markdown import (
    NARROWEST,
    code_lines,
    draw,
    fence_head,
    fence_lines,
    gap_line,
    prefixed,
    prefixes,
)
from dslite.app.tui.transcript.sanitize import inert
from dslite.app.tui.transcript.source_text import NO_SOURCE, DrawnLine, Line, SourceText
from dslite.app.tui.transcript.wrapping import wrap, wrap_plain

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
    reasoning: str = ""
    reasoning_tokens: int = 0
    unfolded: bool = False  # the reasoning is shown, not only its length
    folded: str = ""  # the other form of the text: whole where a part is shown, and the other way round
    blocks: list["RenderBlock"] = field(default_factory=list)
    splitter: Splitter | None = None

    @property
    def first_text_block(self) -> int:
        """The number of blocks before those of the text: the head, and the reasoning where there is some."""
        return 1 + bool(self.reasoning_tokens)


@dataclass(eq=False)
class RenderBlock:
    """A head, the reasoning or a note of an item, or a block of its text.

    `block` is None but for text. `height` is an estimate until `drawn_for` is this layout."""

    item: TranscriptItem
    block: Block | None = None
    kind: Literal["head", "reasoning", "block", "plain", "note"] = "block"
    height: int = 1
    drawn_for: int = -1  # number of the layout
    strips: list[Strip] | None = None
    done: list[Strip] = field(default_factory=list)  # of an open fence, the strips of its complete lines
    done_lines: int = 0
    colours: list[Text] | None = None  # of a long closed fence, once a thread has made them

    @property
    def wants_colours(self) -> bool:
        """Whether highlighting takes so long that a thread should do it."""
        block = self.block
        if block is None or block.kind != "fence" or not block.closed or self.colours is not None:
            return False
        return len(block.lines) > _MOST_AT_ONCE and bool(block.language)


def render_blocks(item: TranscriptItem) -> list[RenderBlock]:
    """The blocks of an item from its text."""
    if item.speaker == "notice":
        return [RenderBlock(item, kind="note")]
    blocks = [RenderBlock(item, kind="head")]
    if item.reasoning_tokens:
        blocks.append(RenderBlock(item, kind="reasoning"))
    if item.speaker == "assistant":
        if item.splitter is None:
            item.splitter = Splitter(item.text)
            if not item.growing:
                item.splitter.finish()
        blocks += [RenderBlock(item, block) for block in item.splitter.blocks]
    elif item.text:
        blocks.append(RenderBlock(item, kind="plain"))
    if item.note:
        blocks.append(RenderBlock(item, kind="note"))
    return blocks


def estimate(render_block: RenderBlock, width: int) -> int:
    """About how many lines a block takes."""
    if render_block.kind in ("head", "reasoning"):
        return 2
    inner = max(width - _INDENT, NARROWEST)
    if render_block.kind in ("plain", "note"):
        text = render_block.item.text if render_block.kind == "plain" else render_block.item.note
        return sum(-(-max(_cells(line), 1) // inner) for line in text.split("\n")) + (render_block.kind == "note")
    block = render_block.block
    assert block is not None
    inner = max(inner - 2 * len(block.marks), NARROWEST)
    if block.kind in ("paragraph", "heading"):
        lines = -(-max(sum(_cells(line) + 1 for line in block.lines), 1) // inner)
    else:
        lines = sum(-(-max(_cells(line), 1) // inner) for line in block.lines)
    return lines + (block.kind == "fence") + block.gap


def _cells(line: str) -> int:
    return len(line) if line.isascii() else cell_len(line)


class BlockRenderer:
    """Draws blocks for one width and palette."""

    def __init__(self, width: int, palette: Palette) -> None:
        self.width = width
        self.palette = palette
        self._inner = max(width - _INDENT, NARROWEST)

    def draw(self, render_block: RenderBlock) -> list[Strip]:
        """The strips of a block, each `width` cells wide at most."""
        item, block = render_block.item, render_block.block
        if render_block.kind == "head":
            lines = [[], self._head(item)]
        elif render_block.kind == "plain":
            style = None if item.speaker == "user" else self.palette.muted
            text = inert(item.text.rstrip("\r\n"))
            lines = _inset([[Segment(line, style)] for line in wrap_plain(text, self.width - _INDENT)])
            if item.speaker == "user":
                return [self._on_surface(strip, 0) for strip in self._strips(lines)]
        elif render_block.kind == "note":
            lines = self._note(item)
        elif render_block.kind == "reasoning":
            lines = self._reasoning(item)
        else:
            assert block is not None
            return self._block(render_block, block)
        return self._strips(lines)

    def _strips(self, lines: list[Line]) -> list[Strip]:
        return [Strip(Segment.apply_style(line, self.palette.base)) for line in lines]

    def _on_surface(self, strip: Strip, start: int) -> Strip:
        """A line with the faint surface behind it, from a column to the end of the text's width."""
        surface = self.palette.surface
        if surface.bgcolor is None:
            return strip
        before, text = strip.crop(0, start), strip.crop(start, strip.cell_length)
        rest = Segment(" " * max(self.width - strip.cell_length, 0), self.palette.base + surface)
        shaded = [part._replace(style=(part.style or Style()) + surface) for part in text]
        return Strip([*before, *shaded, rest])

    def _head(self, item: TranscriptItem) -> Line:
        style = {"user": self.palette.user, "assistant": self.palette.assistant}.get(item.speaker, self.palette.muted)
        name = inert(item.name)
        which, count = item.branch
        if count < 2:
            return [Segment(name, style)]
        walk = f"◂ {which} of {count} ▸"
        room = self.width - cell_len(name) - len(walk)
        return [Segment(name, style), Segment(" " * max(room, 1) + walk, self.palette.muted)]

    def _note(self, item: TranscriptItem) -> list[Line]:
        text = _note_text(item)
        style = self.palette.warning if text.startswith("!") else self.palette.muted
        lines = wrap_plain(inert(text.removeprefix("!").strip()), self.width - _INDENT)
        return [[], *_inset([[Segment(line, style)] for line in lines])]

    def _reasoning(self, item: TranscriptItem) -> list[Line]:
        """How long the model thought; below it, when unfolded, the text of that."""
        texts = [f"{'▾' if item.unfolded else '▸'} thought for {item.reasoning_tokens:,} tokens"]
        if item.unfolded:
            texts += wrap_plain(inert(item.reasoning.strip()), self.width - _INDENT)
        return [*_inset([[Segment(text, self.palette.muted)] for text in texts]), []]

    def _block(self, render_block: RenderBlock, block: Block) -> list[Strip]:
        if block.kind == "fence" and (not block.closed or render_block.wants_colours or render_block.colours):
            return self._strips(self._gap(block)) + self._long_fence(render_block, block)
        strips = self._strips(_inset([line.segments for line in draw(block, self._inner, self.palette)]))
        if block.kind in ("fence", "code"):
            strips = self._code_surface(block, strips)
        return self._strips(self._gap(block)) + strips

    def _code_surface(self, block: Block, strips: list[Strip]) -> list[Strip]:
        """Lines of code with the surface behind them, which begins at their bar."""
        start = _INDENT + cell_len(prefixes(block, self._inner)[1])
        return [self._on_surface(strip, start) for strip in strips]

    def _gap(self, block: Block) -> list[Line]:
        if not block.gap:
            return []
        line = gap_line(block, self._inner, self.palette)
        return _inset([line]) if line else [[]]

    def _long_fence(self, render_block: RenderBlock, block: Block) -> list[Strip]:
        """Complete lines of an open fence are coloured and kept, each by itself; only the last is drawn again."""
        first, rest = prefixes(block, self._inner)
        width = max(self._inner - cell_len(rest), NARROWEST)

        def strips(lines: list[DrawnLine]) -> list[Strip]:
            drawn = self._strips(_inset([prefixed(line, rest, self.palette).segments for line in lines]))
            return self._code_surface(block, drawn)

        def coloured(number: int) -> list[Strip]:
            [text] = highlight(inert(block.lines[number]), block.language, self.palette)
            return strips(code_lines(block, number, text, width, self.palette))

        head = prefixed(DrawnLine(fence_head(block, width, self.palette), []), first, self.palette)
        drawn = self._code_surface(block, self._strips(_inset([head.segments])))
        if render_block.colours:
            return drawn + strips(fence_lines(block, width, self.palette, render_block.colours)[1:])
        if render_block.drawn_for < 0:
            render_block.done, render_block.done_lines = [], 0
        whole = len(block.lines) - (not block.closed)
        for number in range(render_block.done_lines, whole):
            render_block.done += coloured(number)
        render_block.done_lines = max(render_block.done_lines, whole)
        last = [strip for number in range(render_block.done_lines, len(block.lines)) for strip in coloured(number)]
        return drawn + render_block.done + last

    # Places in the source.

    def source_offsets(self, render_block: RenderBlock) -> list[list[int]]:
        """For each character of each line of a block, its offset in the item's text; NO_SOURCE for decoration."""
        item, block = render_block.item, render_block.block
        if render_block.kind == "plain":
            return [_indented(line.offsets) for line in self._plain_lines(item.text.rstrip("\r\n"), 0)]
        if render_block.kind == "note" and item.speaker == "notice":
            text = item.text.removeprefix("!")
            start = len(item.text) - len(text.lstrip())
            return [[], *(_indented(line.offsets) for line in self._plain_lines(text.strip(), start))]
        if block is None:
            return [[] for _ in range(render_block.height)]
        if block.kind == "fence":  # without colours, which take long
            _, rest = prefixes(block, self._inner)
            inner = max(self._inner - cell_len(rest), NARROWEST)
            drawn = [prefixed(line, rest, self.palette) for line in fence_lines(block, inner, self.palette)]
        else:
            drawn = draw(block, self._inner, self.palette)
        return [[]] * block.gap + [_indented(line.offsets) for line in drawn]

    def _plain_lines(self, text: str, start: int) -> list[SourceText]:
        lines = split_lines(text)
        width = self.width - _INDENT
        return [part for place, line in lines for part in wrap(SourceText.of_line(line, start + place), width)]


def _note_text(item: TranscriptItem) -> str:
    return item.text if item.speaker == "notice" else item.note


def _inset(lines: list[Line]) -> list[Line]:
    return [[Segment(" " * _INDENT), *line] for line in lines]


def _indented(offsets: list[int]) -> list[int]:
    return [NO_SOURCE] * _INDENT + offsets
