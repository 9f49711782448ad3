"""How far a batch is, on the status line: 12 lines done · 8 running · 3 min 20 s left."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dslite.app.terminal.console import TerminalStatus
from dslite.runtime.units import time_text


class BatchProgress:
    """Counts lines and their bytes. The time that is left is known where the size of the input is."""

    def __init__(self, size: int | None = None, *, shares_terminal: bool | None = None) -> None:
        """`size` of the input in bytes. `shares_terminal`: results are printed where the status line stands."""
        self._size = size
        self._started = time.monotonic()
        self._status = TerminalStatus()
        self._shares = sys.stdout.isatty() if shares_terminal is None else shares_terminal
        self._lines = 0
        self._computed_bytes = 0
        self._copied_bytes = 0

    def finished(self, size: int, *, computed: bool) -> None:
        """A line of so many bytes has its result, which was computed or copied from an earlier output."""
        self._lines += 1
        if computed:
            self._computed_bytes += size
        else:
            self._copied_bytes += size

    def left_s(self, elapsed_s: float) -> float | None:
        """Seconds to go, as if an answer took as long for each byte of its line; None where that is not known."""
        if self._size is None or not self._computed_bytes:
            return None
        left = max(0, self._size - self._copied_bytes - self._computed_bytes)
        return elapsed_s * left / self._computed_bytes

    def text(self, running: int, elapsed_s: float) -> str:
        """The status line."""
        parts = [f"{self._lines:,} {'line' if self._lines == 1 else 'lines'} done", f"{running} running"]
        if (left := self.left_s(elapsed_s)) is not None:
            parts.append(f"{time_text(left)} left")
        return " · ".join(parts)

    def show(self, running: int) -> None:
        """`running` lines have no result yet."""
        self._status.show(self.text(running, time.monotonic() - self._started))

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """A context in which a result may be printed."""
        if self._shares:
            self._status.clear()
        yield

    def close(self) -> None:
        self._status.clear()
