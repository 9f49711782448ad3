"""Textual's parser of terminal input, with pasted text that is never taken for keys.

XTermParser reads an ESC in a paste as the beginning of a key: the text behind it ran as keystrokes. Here all text up to
the closing bracket is the paste, less its control characters. A terminal without bracketed paste sends a paste like
typed keys, Enter for each line end; what arrives in one read with line ends inside is taken for a paste as well.
A closing bracket that never comes must not swallow all later keys: a paste also ends after a silence, and at a size.
"""

import re
import time
from collections.abc import Callable, Generator, Iterable

from textual import events
from textual._xterm_parser import BRACKETED_PASTE_END, BRACKETED_PASTE_START, XTermParser
from textual.message import Message

_CONTINUES_S = 0.05  # a paste without brackets may come in several reads
_SILENCE_S = 2.0  # after which a paste without its closing bracket is over
_LONGEST = 1 << 24  # characters of a paste
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_COMMAND = re.compile(r"/[a-z?_-]+(?: .*)?")


def without_controls(text: str) -> str:
    """Pasted text without C0 and C1 controls other than tabs and line ends, which are LF."""
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def is_unbracketed_paste(data: str) -> bool:
    """Whether what one read returned is a paste from a terminal that does not bracket it.

    Line ends between lines are the sign. Slash commands behind each other are not: scripts and quick users type ahead.
    """
    lines = re.split(r"\r\n|\r|\n", data.rstrip("\r\n"))
    if len(lines) < 2 or _CONTROLS.search(data):
        return False
    return not all(_COMMAND.fullmatch(line) for line in lines[1:])


class PasteParser(XTermParser):
    """An XTermParser that makes one Paste event of each paste."""

    def __init__(self, debug: bool = False, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(debug)
        self._clock = clock
        self._recent = ""  # the end of what was read, which may be the beginning of an opening bracket
        self._pasted: str | None = None  # what a paste amounts to so far
        self._continues_until = 0.0
        self._read_at = 0.0  # when the last part of the paste came

    def feed(self, data: str) -> Iterable[Message]:
        """Messages of the keys, mouse events and pastes in `data`; the empty string is the end of input."""
        if not data:
            yield from super().feed(data)
        while data:
            if self._pasted is not None:
                data = yield from self._read_paste(data)
                continue
            text = self._recent + data
            place = text.find(BRACKETED_PASTE_START)
            if place < 0:
                self._recent = text[1 - len(BRACKETED_PASTE_START) :]
                yield from self._read_keys(data)
                return
            end = place + len(BRACKETED_PASTE_START)
            yield from self._read_keys(text[len(self._recent) : end])
            self._recent, self._pasted, data = "", "", text[end:]

    def _read_paste(self, data: str) -> Generator[Message, None, str]:
        """Read up to the closing bracket; return what is behind it."""
        assert self._pasted is not None
        before = len(self._pasted)
        self._pasted += data
        self._read_at = self._clock()
        end = self._pasted.find(BRACKETED_PASTE_END, max(before - len(BRACKETED_PASTE_END), 0))
        if end < 0:
            if len(self._pasted) > _LONGEST:
                yield from self._end_paste(self._pasted)
            return ""
        behind = self._pasted[end + len(BRACKETED_PASTE_END) :]
        yield from self._end_paste(self._pasted[:end])
        return behind

    def _end_paste(self, text: str) -> Iterable[Message]:
        self._pasted = None
        yield from self._without_pastes(BRACKETED_PASTE_END)
        yield events.Paste(without_controls(text))

    def tick(self) -> Iterable[Message]:
        """Messages that are due without input: a lone Esc, and a paste that has stopped without its end."""
        if self._pasted is not None and self._clock() - self._read_at > _SILENCE_S:
            yield from self._end_paste(self._pasted)
        yield from super().tick()

    def _read_keys(self, data: str) -> Iterable[Message]:
        now = self._clock()
        continues = now < self._continues_until and not _CONTROLS.search(data)
        if continues or is_unbracketed_paste(data):
            self._continues_until = now + _CONTINUES_S
            yield events.Paste(without_controls(data))
        else:
            yield from self._without_pastes(data)

    def _without_pastes(self, data: str) -> Iterable[Message]:
        """Textual's own reading, which makes an empty paste of the two brackets."""
        for event in super().feed(data):
            if not isinstance(event, events.Paste):
                yield event
