"""What goes to the terminal besides an answer: errors, warnings, progress. All of it to stderr."""

import sys
import time
from dataclasses import dataclass
from typing import TextIO, cast

from dslite.app.terminal import signals
from dslite.model.errors import DsliteError


@dataclass
class Settings:
    """How much to say: --debug, -q, -v."""

    debug: bool = False
    quiet: bool = False
    verbose: bool = False


settings = Settings()

# C0 controls by their symbols, such as ␛ for ESC, and C1 controls as U+FFFD. Tabs and line ends stay.
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
_CONTROLS |= {0x7F: 0x2421} | {code: 0xFFFD for code in range(0x80, 0xA0)}
# What changes the place or the order of text on a terminal: a lone CR overwrites the line, and embeddings, overrides
# and isolates reorder what stands behind them.
_MOVES = {0x0D: 0x240D} | dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def configure(*, debug: bool, quiet: bool, verbose: bool) -> None:
    """Turn settings on; the flags may stand before a command, behind it, or both."""
    settings.debug |= debug
    settings.quiet |= quiet
    settings.verbose |= verbose


def printable(text: str) -> str:
    """Text whose C0 and C1 controls are replaced by symbols; tabs, line ends and the direction of text stay."""
    return text.translate(_CONTROLS)


def visible(text: str) -> str:
    """Text that a terminal shows as it stands: as `printable`, and neither a CR nor a bidi control acts."""
    return printable(text).replace("\r\n", "\n").translate(_MOVES)


def error_text(error: DsliteError) -> str:
    """The fact, and the remedy in a line of its own."""
    return "\n".join(filter(None, (error.message, error.remedy)))


def show_error(error: DsliteError) -> None:
    """The fact and the remedy, one line each."""
    print(f"dslite: {visible(error.message)}", file=sys.stderr)
    if error.remedy:
        print(f"  {visible(error.remedy)}", file=sys.stderr)


_warned: set[str] = set()


def warn_once(text: str) -> None:
    """A warning that is shown only the first time."""
    if text not in _warned:
        _warned.add(text)
        warn(text)


def warn(text: str) -> None:
    print(f"dslite: {visible(text)}", file=sys.stderr)


def unfiltered(stream: TextIO) -> TextIO:
    """The stream below the one that takes out control characters (streams.py), for code that draws with them."""
    return cast(TextIO, getattr(stream, "unfiltered", stream))


class TerminalStatus:
    """One line on stderr that is rewritten in place; silent without a terminal and with --quiet."""

    _EVERY_S = 0.1

    def __init__(self) -> None:
        self._stream = unfiltered(sys.stderr)
        self._on = self._stream.isatty() and not settings.quiet
        self._width = 0
        self._told = 0.0

    def show(self, text: str) -> None:
        now = time.perf_counter()
        if not self._on or now - self._told < self._EVERY_S:
            return
        self._told = now
        text = visible(text)
        if not self._width:
            signals.cleanups.append(self.clear)
        print(f"\r{text:<{self._width}}", end="", file=self._stream, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=self._stream, flush=True)
            self._width = 0
            signals.cleanups.remove(self.clear)
