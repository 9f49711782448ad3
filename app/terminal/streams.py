"""The standard streams, whatever a shell has made of them: closed, unreadable, redirected, in another encoding.

`prepared` replaces `sys.stdout` and `sys.stderr` by streams that pass no control character on: what a model, a server
or a file name holds cannot act on a terminal, whichever `print` it goes through. Output that is no terminal is UTF-8.
Code that draws (a status line, bars, a full screen) writes to `console.unfiltered(sys.stderr)`.

    with streams.prepared():
        app()
"""

import io
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from dslite.app.terminal.console import printable, visible
from dslite.runtime.errors import UsageError

_WAIT_S = 2.0  # without a byte on stdin, before stderr says that the command waits
_CHUNK = 1 << 16
_FREE_BYTES = 4 << 20  # read before a limit is asked for
_READ_AHEAD = 16  # chunks
_PIPE_IN = "give the prompt as words, or pipe a text in"


class _FilteredStream:
    """stdout or stderr without control characters; every other attribute is the stream's own."""

    def __init__(self, stream: TextIO, name: str, *, required: bool) -> None:
        """`required`: a failed write is an error that carries `name`. Else it is ignored: nothing depends on it."""
        self.unfiltered = stream
        self._name = name
        self._required = required
        self._terminal = stream.isatty()
        self._held = ""  # a CR at the end of a write: LF may follow
        self._failed = False

    def write(self, text: str) -> int:
        shown = printable(text)
        if not text:
            return 0  # Typer asks in this way whether a stream takes text, and ignores an error
        if self._terminal:
            shown, self._held = self._held + shown, ""
            if shown.endswith("\r"):
                shown, self._held = shown[:-1], "\r"
            shown = visible(shown)
        self._attempt(lambda: self.unfiltered.write(shown))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._attempt(self.unfiltered.flush)

    def _attempt(self, operation: Any) -> None:
        """Write or flush; nothing more is tried after a failure."""
        if self._failed:
            return
        try:
            operation()
        except OSError as error:
            self._failed = True
            self._discard()
            if self._required and isinstance(error, BrokenPipeError):
                sys.exit(0)  # the reader has enough (`| head`)
            if self._required:
                error.filename = self._name
                raise

    def _discard(self) -> None:
        """Let what is still buffered go nowhere: the interpreter flushes it at exit, and would fail again."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.unfiltered.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unfiltered, name)


class _ClosedStdin(io.StringIO):
    """What stands for a stdin that is closed: empty, and no terminal."""


@contextmanager
def prepared() -> Iterator[None]:
    """Put the three standard streams in order for a command."""
    _open_closed_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = before[0] or _ClosedStdin()
    sys.stdout = _filtered(before[1], "stdout", required=True)
    sys.stderr = _filtered(before[2], "stderr", required=False)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before[0], before[1] or sys.stdout, before[2] or sys.stderr


def _filtered(stream: TextIO | None, name: str, *, required: bool) -> TextIO:
    if isinstance(stream, _FilteredStream):
        return stream
    stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it lasts as long as the process)
    if isinstance(stream, io.TextIOWrapper):
        if not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        else:
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="backslashreplace" if utf8 else "replace")
    return cast(TextIO, _FilteredStream(stream, name, required=required))


def _open_closed_descriptors() -> None:
    """Let no file that is opened later take the number of a closed standard stream."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)


def read_stdin(*, optional: bool = False, most: Callable[[], int] | None = None) -> bytes:
    """All of stdin, or a little more than `most()` bytes where there is more: `yes` has no end.

    `optional`: there is a prompt besides, so a stdin that cannot be read counts as empty, and stderr says after two
    seconds that the command waits. Raises UsageError for a stdin that is closed or cannot be read.
    """
    data = bytearray()
    try:
        for chunk in _chunks(sys.stdin, notice=optional):
            data += chunk
            if _exceeds(data, most):
                break
    except OSError as error:
        if not optional:
            reason = error.strerror or str(error)
            raise UsageError(f"stdin cannot be read: {reason}", _PIPE_IN) from None
    return bytes(data)


def _chunks(stream: TextIO, *, notice: bool) -> Iterator[bytes]:
    """The bytes of a stream as they come. Raises OSError."""
    descriptor = _descriptor(stream)
    if descriptor is None:
        yield stream.buffer.read()
        return
    chunks = start_reading(descriptor)
    first = True
    while True:
        try:
            chunk = chunks.get(timeout=_WAIT_S if first and notice else None)
        except queue.Empty:
            first = False
            print("dslite: waiting for stdin (</dev/null if there is none)", file=sys.stderr)
            continue
        first = False
        if isinstance(chunk, BaseException):
            raise chunk
        if not chunk:
            return
        yield chunk


def _descriptor(stream: TextIO) -> int | None:
    """The descriptor of stdin; None where it has none. Raises OSError where it is closed."""
    if isinstance(stream, _ClosedStdin):
        raise OSError(None, "it is closed")
    try:
        return stream.fileno()
    except io.UnsupportedOperation:
        return None


def stdin_descriptor() -> int:
    """Raises UsageError where stdin is closed."""
    try:
        descriptor = _descriptor(sys.stdin)
    except (OSError, ValueError) as error:
        raise UsageError(f"stdin cannot be read: {getattr(error, 'strerror', None) or error}", _PIPE_IN) from None
    if descriptor is None:
        raise UsageError("stdin cannot be read: it is no file", _PIPE_IN)
    return descriptor


def start_reading(descriptor: int) -> "queue.Queue[bytes | BaseException]":
    """The chunks of a descriptor as they come, a few ahead: bytes, empty ones at the end, or what went wrong.

    A thread reads, so that no system needs to tell whether a read would block, and a wait can be interrupted.
    """
    chunks: queue.Queue[bytes | BaseException] = queue.Queue(_READ_AHEAD)
    threading.Thread(target=_read_into, args=(descriptor, chunks), daemon=True, name="dslite-reader").start()
    return chunks


def _read_into(descriptor: int, chunks: "queue.Queue[bytes | BaseException]") -> None:
    # os.read: a buffered reader's lock, held by a thread that waits, would abort the interpreter at its exit.
    try:
        while data := os.read(descriptor, _CHUNK):
            chunks.put(data)
        chunks.put(b"")
    except BaseException as error:  # raised again where the bytes are waited for
        chunks.put(error)


def stdin_is_terminal() -> bool:
    with suppress(OSError, ValueError):
        return sys.stdin.isatty()
    return False


def _exceeds(data: bytearray, most: Callable[[], int] | None) -> bool:
    return most is not None and len(data) > _FREE_BYTES and len(data) > most()


def read_file(file: "str | os.PathLike[str]", what: str, *, most: Callable[[], int] | None = None) -> bytes:
    """The bytes of a file that the user named, or a little more than `most()` of them. Raises UsageError."""
    data = bytearray()
    try:
        with open(file, "rb", buffering=0) as stream:
            while not _exceeds(data, most) and (chunk := stream.read(1 << 20)):
                data += chunk
        return bytes(data)
    except OSError as error:
        raise UsageError(f"{what} {file} cannot be read: {error.strerror}", "check its path and permissions") from None


_BOMS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def decode(data: bytes, what: str) -> str:
    """Text of UTF-8 bytes, without a byte-order mark at their head. Raises UsageError, which names another encoding."""
    text = without_mark(data, what)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        place = error.start + len(data) - len(text)
        # A file's byte can be looked up; a pipe's cannot, so it is shown.
        fault = f": byte 0x{data[place]:02x} at {place}" if what == "stdin" else f" at byte {place}"
        raise UsageError(f"{what} is not valid UTF-8{fault}", "convert it to UTF-8") from None


def without_mark(data: bytes, what: str) -> bytes:
    """UTF-8 bytes without a byte-order mark at their head. Raises UsageError for UTF-16 and UTF-32."""
    other = next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)
    if other or _looks_like_utf16(data):
        raise UsageError(f"{what} is {other or 'UTF-16'}, and not valid UTF-8", "convert it to UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _looks_like_utf16(data: bytes) -> bool:
    """Whether most of every second byte at the head is NUL, and no other: UTF-16 without a mark."""
    head = data[:256]
    halves = head[0::2], head[1::2]
    if len(head) < 4 or len(data) % 2:
        return False
    empty = [half.count(0) / len(half) for half in halves]
    return min(empty) == 0 and max(empty) >= 0.7
