"""Lines of a file, a pipe or stdin as they come: an endless pipe takes no more memory than its longest line.

lines = LineReader.open("-")
while not lines.ended:
    line = lines.take(wait_s=0.1)  # None where none came
"""

import os
import queue
import stat
import threading
from collections import deque

from dslite.app.terminal import streams
from dslite.runtime.errors import UsageError

MOST_LINE_BYTES = 64 << 20  # six times what the longest context takes; of a longer line one byte more is kept
_HEAD_BYTES = 4  # the longest byte-order mark


class LineReader:
    """Takes the lines that are not blank, without their ends, in order."""

    def __init__(self, descriptor: int, what: str) -> None:
        """Read a descriptor, which is `what` in an error."""
        self._what = what
        self._chunks = streams.start_reading(descriptor)
        self._lines: deque[bytes] = deque()
        self._head: bytes | None = b""  # None once the byte-order mark has been looked for
        self._partial = bytearray()
        self._closed = False
        found = os.fstat(descriptor)
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None  # bytes, where they are known
        self.taken = 0  # lines

    @classmethod
    def open(cls, source: str, what: str) -> "LineReader":
        """Read a file, or stdin for `-`. Raises UsageError where it cannot be opened."""
        if source == "-":
            return cls(streams.stdin_descriptor(), "stdin")
        try:
            with open(source, "rb", buffering=0) as file:
                return cls(os.dup(file.fileno()), f"{what} {source}")
        except OSError as error:
            raise _unreadable(f"{what} {source}", error) from None

    @property
    def ended(self) -> bool:
        """Whether the last line has been taken."""
        return self._closed and not self._lines

    def take(self, wait_s: float, cancel: threading.Event | None = None) -> bytes | None:
        """The next line, waited for so long or until `cancel`; None where none came. Raises UsageError.

        A line of more than MOST_LINE_BYTES is cut behind one byte more.
        """
        while not self._lines and not self._closed:
            if cancel is not None and cancel.is_set():
                return None
            try:
                chunk = self._chunks.get(timeout=wait_s) if wait_s > 0 else self._chunks.get_nowait()
            except queue.Empty:
                return None
            if isinstance(chunk, OSError):
                raise _unreadable(self._what, chunk) from None
            if isinstance(chunk, BaseException):
                raise chunk
            self._add(chunk)
        if not self._lines:
            return None
        self.taken += 1
        return self._lines.popleft()

    def _add(self, chunk: bytes) -> None:
        """A further piece; an empty one is the end."""
        self._closed = not chunk
        if self._head is not None:
            self._head += chunk
            if chunk and len(self._head) < _HEAD_BYTES and b"\n" not in self._head:
                return
            chunk, self._head = streams.without_mark(self._head, self._what), None
        first, *others = chunk.split(b"\n")
        self._extend(first)
        for piece in others:
            self._end_line()
            self._extend(piece)
        if self._closed:
            self._end_line()

    def _extend(self, piece: bytes) -> None:
        self._partial += piece[: MOST_LINE_BYTES + 1 - len(self._partial)]

    def _end_line(self) -> None:
        if line := self._partial.strip():
            self._lines.append(bytes(line))
        self._partial.clear()


def _unreadable(what: str, error: OSError) -> UsageError:
    return UsageError(f"{what} cannot be read: {error.strerror or error}", "check its path and permissions")
