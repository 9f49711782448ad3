"""Ctrl+C and SIGTERM while an answer is made: it stops between two tokens, and what came is kept."""

import signal
import sys
import threading
from types import FrameType


class Interruption:
    """A context in which the first signal sets `flag` and the second ends the program."""

    def __init__(self) -> None:
        self.flag = threading.Event()
        self._signal: int | None = None

    def __enter__(self) -> "Interruption":
        # SIGTERM without Python's help: Windows has it in name only.
        self._before = {number: signal.signal(number, self._caught) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int | None:
        """130 after Ctrl+C, 143 after SIGTERM, None where nothing came."""
        return None if self._signal is None else 128 + self._signal

    def _caught(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            sys.exit(128 + number)
        self._signal = number
        self.flag.set()
