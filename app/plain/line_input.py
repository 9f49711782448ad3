"""Reads one input of the line mode: a line, a pasted text, or a block between three quotes.

On a terminal readline gives line editing, history and bracketed paste: a pasted text of several lines is one input.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

_BLOCK = '"""'


class LineInput:
    """Standard input, line by line."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.prefill = ""  # initial text of the next input
        self._readline = _load_readline() if self.interactive else None

    def remember(self, inputs: Sequence[str]) -> None:
        """Add earlier inputs, the newest first, to the history of Up and Down."""
        if self._readline is not None:
            for text in reversed(inputs):
                self._readline.add_history(text)

    def complete(self, find: Callable[[str], Sequence[str]]) -> None:
        """Let Tab complete a line: `find` returns the whole lines that it can become."""
        readline = self._readline
        if readline is None:
            return
        found: list[str] = []

        def completer(line: str, place: int) -> str | None:
            if place == 0:
                found[:] = find(line)
            return found[place] if place < len(found) else None

        readline.set_completer(completer)
        readline.set_completer_delims("\n")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    def read(self) -> str:
        """One input. Raises EOFError, KeyboardInterrupt."""
        text = self._line("> ")
        if not text.lstrip().startswith(_BLOCK):
            return text
        while text.count(_BLOCK) % 2:
            text += "\n" + self._line("… ")
        inner = text.strip()
        return inner[len(_BLOCK) : -len(_BLOCK)].strip("\n") if inner.endswith(_BLOCK) else text

    def choose(self, question: str) -> str:
        """The first letter of the answer to a question, in lower case; empty for none."""
        try:
            return input(question).strip().lower()[:1]
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return ""

    def _line(self, prompt: str) -> str:
        prefill, self.prefill = self.prefill, ""
        if self._readline is None or not prefill:
            return input(prompt if sys.stdin.isatty() else "")
        readline = self._readline

        def insert() -> None:
            readline.insert_text(prefill)
            readline.redisplay()

        readline.set_pre_input_hook(insert)
        try:
            return input(prompt)
        finally:
            readline.set_pre_input_hook(None)


def _load_readline() -> Any:
    """The module, or None where Python was built without it (Windows)."""
    try:
        import readline
    except ImportError:
        return None
    if "libedit" not in (readline.__doc__ or "") and os.environ.get("TERM", "dumb") != "dumb":
        readline.parse_and_bind("set enable-bracketed-paste on")
    readline.parse_and_bind("set bell-style none")
    return readline
