"""Text with styles of which each character knows its place in the message: what a selection copies is the source."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from dslite.app.tui.transcript.sanitize import inert

NO_SOURCE = -1  # the offset of decoration: gutters, padding, bullets, targets of links
Line = list[Segment]


class DrawnLine(NamedTuple):
    """A line on screen, and for each of its characters the offset in the message's text."""

    segments: Line
    offsets: list[int]


@dataclass(slots=True)
class SourceText:
    """`offsets[i]` is where character i of the text stands in the message, NO_SOURCE for decoration."""

    text: Text
    offsets: list[int]

    @classmethod
    def of_line(cls, line: str, start: int) -> "SourceText":
        """A line without styles that begins at an offset of the message."""
        shown, offsets = shown_text(line, range(start, start + len(line)))
        return cls(Text(shown, end=""), offsets)

    def append(self, text: str, offsets: Sequence[int], style: Style | str = "") -> None:
        """Add text of the message, with the place of each character."""
        shown, places = shown_text(text, offsets)
        self.text.append(shown, style)
        self.offsets += places

    def decorate(self, text: str, style: Style | str = "") -> None:
        """Add text that is not in the message."""
        shown = inert(text)
        self.text.append(shown, style)
        self.offsets += [NO_SOURCE] * len(shown)

    def extend(self, other: "SourceText") -> None:
        self.text.append_text(other.text)
        self.offsets += other.offsets

    def divide(self, places: Sequence[int]) -> list["SourceText"]:
        """The parts between some characters."""
        if not places:
            return [self]
        spans = pairwise([0, *places, len(self.offsets)])
        parts = zip(self.text.divide(places), spans, strict=True)
        return [SourceText(text, self.offsets[start:end]) for text, (start, end) in parts]

    def split_lines(self) -> list["SourceText"]:
        """The parts between line ends."""
        plain = self.text.plain
        if "\n" not in plain:
            return [self]
        places = [place for place, character in enumerate(plain) if character == "\n"]
        spans = pairwise([-1, *places, len(plain)])
        return [SourceText(self.text[start + 1 : end], self.offsets[start + 1 : end]) for start, end in spans]

    def drawn(self) -> DrawnLine:
        return DrawnLine(segments(self.text), self.offsets)


def shown_text(text: str, offsets: Sequence[int]) -> tuple[str, list[int]]:
    """Text as the screen shows it, with the offsets of its characters: a tab becomes several."""
    if "\t" not in text:
        return inert(text), list(offsets)
    parts, places = [], []
    for character, offset in zip(text, offsets, strict=True):
        shown = inert(character)
        parts.append(shown)
        places += [offset] * len(shown)
    return "".join(parts), places


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


def source_length(source: str, offset: int, shown: str) -> int:
    """Characters of the source that are shown as one: an escape (a backslash first), an entity, or just one."""
    if source[offset] == "\\" and shown != "\\" and source[offset + 1 : offset + 2] == shown:
        return 2
    if source[offset] == "&" and shown != "&":
        end = source.find(";", offset, offset + 40)
        return end - offset + 1 if end >= 0 else 1
    return 2 if source.startswith("\r\n", offset) else 1
