"""What goes to the terminal besides an answer: errors, warnings, progress. All of it to stderr."""

import sys
import time
from dataclasses import dataclass

from dslite.model.errors import DsliteError


@dataclass
class Settings:
    """How much to say: --debug, -q, -v."""

    debug: bool = False
    quiet: bool = False
    verbose: bool = False


settings = Settings()

# What a terminal would obey is shown instead: ESC as ␛, and so on. Tabs and line ends stay.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"}
_VISIBLE |= {0x7F: 0x2421} | {code: 0xFFFD for code in range(0x80, 0xA0)}


def configure(*, debug: bool, quiet: bool, verbose: bool) -> None:
    """Turn settings on; the flags may stand before a command, behind it, or both."""
    settings.debug |= debug
    settings.quiet |= quiet
    settings.verbose |= verbose


def visible(text: str) -> str:
    """Text whose control characters show instead of acting."""
    return text.translate(_VISIBLE)


def show_error(error: DsliteError) -> None:
    """The fact and the remedy, one line each."""
    print(f"dslite: {visible(error.message)}", file=sys.stderr)
    if error.remedy:
        print(f"  {visible(error.remedy)}", file=sys.stderr)


def warn(text: str) -> None:
    print(f"dslite: {visible(text)}", file=sys.stderr)


class TerminalStatus:
    """One line on stderr that is rewritten in place; silent without a terminal and with --quiet."""

    _EVERY_S = 0.1

    def __init__(self) -> None:
        self._on = sys.stderr.isatty() and not settings.quiet
        self._width = 0
        self._told = 0.0

    def show(self, text: str) -> None:
        now = time.perf_counter()
        if not self._on or now - self._told < self._EVERY_S:
            return
        self._told = now
        print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0
