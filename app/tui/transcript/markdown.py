"""Blocks as lines of segments, for a width and a palette."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from dslite.app.chat.markdown_blocks import Block, parser
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.highlight import highlight
from dslite.app.tui.transcript.inline import styled
from dslite.app.tui.transcript.tables import draw_open_table, draw_table
from dslite.app.tui.transcript.wrapping import chop, wrap

if TYPE_CHECKING:
    from markdown_it.token import Token

Line = list[Segment]
_BULLETS = "•◦‣"
_NARROWEST = 8


def segments(text: Text) -> Line:
    """A line of text as segments."""
    base = Style.parse(text.style) if isinstance(text.style, str) else text.style
    return [
        Segment(text.plain[start:end], base if style is None else base + style) for start, end, style in _spans(text)
    ]


def _spans(text: Text) -> Iterator[tuple[int, int, Style | None]]:
    """Stretches of one style each. Spans of our texts are in order and do not overlap."""
    place = 0
    for span in text.spans:
        if span.start > place:
            yield place, span.start, None
        if span.end > span.start:
            yield span.start, span.end, span.style if isinstance(span.style, Style) else None
        place = max(place, span.end)
    if place < len(text.plain):
        yield place, len(text.plain), None


def draw(block: Block, width: int, palette: Palette) -> list[Line]:
    """The lines of a block."""
    inner = max(width - block.indent, _NARROWEST)
    if block.kind == "fence":
        lines = draw_fence(block, inner, palette)
    elif block.kind == "table":
        texts = draw_table(block.lines, inner, palette) if block.closed else draw_open_table(block.lines, inner)
        lines = [segments(text) for text in texts]
    else:
        lines = [segments(text) for text in _Document(palette).draw(block.source, inner)]
    return _indented(lines, block.indent)


def _indented(lines: list[Line], indent: int) -> list[Line]:
    return [[Segment(" " * indent), *line] for line in lines] if indent else lines


def fence_head(block: Block, width: int, palette: Palette) -> Line:
    """The line above code: its language, and how to copy it."""
    name, hint = block.language or "code", f"copy: /copy {block.number}"
    room = width - 2 - cell_len(name) - len(hint)
    if room < 1:
        return [Segment("┃ ", palette.bar), Segment(name[: width - 2], palette.muted)]
    return [Segment("┃ ", palette.bar), Segment(name + " " * room + hint, palette.muted)]


def draw_fence(block: Block, width: int, palette: Palette) -> list[Line]:
    """A code block with its bar. An open one is coloured line by line: it is drawn again with every token."""
    lines = [fence_head(block, width, palette)]
    if block.closed:
        texts = highlight(block.source, block.language, palette)
    else:
        texts = [text for line in block.lines for text in highlight(line, block.language, palette)]
    for text in texts:
        lines += code_lines(text, width, palette)
    return lines


def code_lines(text: Text, width: int, palette: Palette) -> list[Line]:
    """One line of code behind the bar, continued below where it is too long."""
    bar = Segment("┃ ", palette.bar)
    pieces = chop(text.plain, width - 2)
    if len(pieces) == 1:
        return [[bar, *segments(text)]]
    places = [0]
    for piece in pieces:
        places.append(places[-1] + len(piece))
    return [[bar, *segments(part)] for part in text.divide(places[1:-1])]


class _Document:
    """Draws Markdown that is not a fence or a table at the top: paragraphs, headings, lists, quotes."""

    def __init__(self, palette: Palette) -> None:
        self._palette = palette

    def draw(self, source: str, width: int) -> list[Text]:
        return self._container(parser().parse(source), width)

    def _container(self, tokens: Sequence["Token"], width: int, depth: int = 0, tight: bool = False) -> list[Text]:
        lines: list[Text] = []
        for opening, inside in _children(tokens):
            drawn = self._element(opening, inside, width, depth)
            if lines and drawn and not tight:
                lines.append(Text(end=""))
            lines += drawn
        return lines

    def _element(self, token: "Token", inside: Sequence["Token"], width: int, depth: int) -> list[Text]:
        kind, palette = token.type, self._palette
        if kind == "paragraph_open":
            return wrap(styled(inside[0].children or [], palette), width)
        if kind == "heading_open":
            return self._heading(token, styled(inside[0].children or [], palette), width)
        if kind in ("bullet_list_open", "ordered_list_open"):
            return self._list(token, inside, width, depth)
        if kind == "blockquote_open":
            drawn = self._container(inside, max(width - 2, _NARROWEST), depth)
            return [Text.assemble(("▌ ", palette.bar), line, end="") for line in drawn]
        if kind == "hr":
            return [Text("─" * width, palette.muted, end="")]
        if kind in ("fence", "code_block"):
            return self._code(token, width)
        if kind == "table_open":
            assert token.map is not None
            return [Text(inline.content, end="") for inline in inside if inline.type == "inline"]
        return wrap(Text(token.content, end=""), width)

    def _heading(self, token: "Token", text: Text, width: int) -> list[Text]:
        line = Text(text.plain, end="")
        line.stylize(Style(bold=True, underline=token.tag == "h1"))
        return wrap(line, width)

    def _code(self, token: "Token", width: int) -> list[Text]:
        texts = highlight(token.content.rstrip("\n"), token.info.split(" ")[0], self._palette)
        lines = [part for text in texts for part in text.divide(_places(chop(text.plain, width - 2)))]
        return [Text.assemble(("┃ ", self._palette.bar), line, end="") for line in lines]

    def _list(self, token: "Token", inside: Sequence["Token"], width: int, depth: int) -> list[Text]:
        number = int(token.attrs.get("start", 1)) if token.type == "ordered_list_open" else None
        lines: list[Text] = []
        for _, content in _children(inside):
            mark = f"{_BULLETS[depth % len(_BULLETS)]} " if number is None else f"{number}. "
            number = None if number is None else number + 1
            tight = all(part.hidden for part in content if part.type == "paragraph_open")
            drawn = self._container(content, max(width - len(mark), _NARROWEST), depth + 1, tight) or [Text(end="")]
            for place, line in enumerate(drawn):
                head = (mark, self._palette.chosen) if place == 0 else (" " * len(mark), "")
                lines.append(Text.assemble(head, line, end=""))
        return lines


def _places(pieces: Sequence[str]) -> list[int]:
    places, place = [], 0
    for piece in pieces[:-1]:
        place += len(piece)
        places.append(place)
    return places


def _children(tokens: Sequence["Token"]) -> Iterator[tuple["Token", Sequence["Token"]]]:
    """The elements at the top of a token list, each with what lies between its opening and its closing."""
    place = 0
    while place < len(tokens):
        opening, start = tokens[place], place + 1
        depth: int = opening.nesting
        while depth > 0:
            place += 1
            depth += tokens[place].nesting
        yield opening, tokens[start:place]
        place += 1
