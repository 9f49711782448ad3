"""Questions to the user before the screen or an answer begins: asked on stderr, read from stdin."""

import sys


def can_ask() -> bool:
    """Whether there is a terminal to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def read_answer(question: str) -> str | None:
    """A line of the terminal; None at the end of input."""
    print(question, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.strip() if line else None
