"""Where a command writes: stdout, a file that appears whole when all is written, or a device, pipe or descriptor.

An answer may have taken an hour, so a disk that is full at its end does not cost it: what the file cannot take goes to
stdout, and an error says so.
"""

import errno
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO, cast

from dslite.app.terminal.signals import Interruption, cleaned_up
from dslite.model.errors import DsliteError
from dslite.runtime.atomic_file import temporary_beside
from dslite.runtime.errors import UsageError
from dslite.runtime.system.files import replace
from dslite.runtime.system.folders import expand_home

_DESCRIPTOR = re.compile(r"(?:/dev|/proc/(self|thread-self|\d+))/fd/(\d+)")
_NAMED = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_MOST_LINKS = 40
_LOOK_S = 0.05


class _OutputStream(io.TextIOBase):
    """UTF-8 text into a descriptor; what that does not take goes to stdout."""

    def __init__(self, descriptor: int, *, readable: bool) -> None:
        """`readable`: what was written can be read back, and printed too where a later write fails."""
        self.descriptor = descriptor
        self.error: OSError | None = None
        self._readable = readable
        self._size = 0  # bytes of the writes that succeeded

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self._write(text.encode("utf-8", "backslashreplace"))
                return len(text)
            except BrokenPipeError:
                raise  # the reader of a pipe has enough
            except OSError as error:
                self.fail(error)
        sys.stdout.write(text)
        return len(text)

    def fail(self, error: OSError) -> None:
        """Print what was written so far."""
        self.error = error
        if self._readable:
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            with open(self.descriptor, "rb", closefd=False) as written:
                sys.stdout.write(written.read(self._size).decode("utf-8"))

    def close_descriptor(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def reopen(self, file: Path) -> None:
        """Open the file that was written, so that `fail` can read it."""
        if self.descriptor < 0:
            self.descriptor = os.open(file, os.O_RDWR)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]
        self._size += len(data)

    def flush(self) -> None:
        if self.error is not None:
            sys.stdout.flush()


@contextmanager
def open_output(file: Path | None, interruption: Interruption | None = None) -> Iterator[TextIO]:
    """stdout for None and `-`; else a stream that replaces the file at its end, and leaves it alone on an error.

    A device, a pipe or an open descriptor (/dev/stdout, /dev/fd/3) is written to, never replaced. Raises UsageError
    where the file cannot be opened, DsliteError at the end where it did not take all. `interruption` ends the wait for
    a pipe's reader.
    """
    number = None if file is None else _descriptor(file)
    if file is None or number == 1:
        yield sys.stdout
        return
    file = expand_home(file)
    special = number is not None or _is_special(file)
    with _special(file, number, interruption or Interruption()) if special else _replaced(file.resolve()) as stream:
        yield cast(TextIO, stream)
    _raise_failure(file, stream)


@contextmanager
def append_output(file: Path) -> Iterator[TextIO]:
    """A stream at the end of a file, which has at once what is written: a kill leaves it there.

    Raises UsageError where the file cannot be opened, DsliteError at the end where it did not take all.
    """
    try:
        opened = file.open("ab", buffering=0)
    except OSError as error:
        raise _cannot(file, error) from None
    with opened:
        stream = _OutputStream(opened.fileno(), readable=False)
        yield cast(TextIO, stream)
        if stream.error is None:
            try:
                os.fsync(opened.fileno())
            except OSError as error:
                stream.error = error
    _raise_failure(file, stream)


def _raise_failure(file: Path, stream: _OutputStream) -> None:
    if stream.error is not None:
        raise DsliteError(
            f"{file} cannot be written: {stream.error.strerror}",
            "the answer was printed instead; check disk and place",
        ) from stream.error


@contextmanager
def _special(file: Path, number: int | None, interruption: Interruption) -> Iterator[_OutputStream]:
    try:
        descriptor = _open_special(file, interruption) if number is None else os.dup(number)
    except OSError as error:
        raise _cannot(file, error) from None
    try:
        yield _OutputStream(descriptor, readable=False)
    finally:
        os.close(descriptor)


@contextmanager
def _replaced(file: Path) -> Iterator[_OutputStream]:
    temporary, descriptor = _temporary(file)
    stream = _OutputStream(descriptor, readable=True)
    try:
        with cleaned_up(lambda: temporary.unlink(missing_ok=True)):
            yield stream
            if stream.error is None:
                try:
                    os.fsync(descriptor)
                    stream.close_descriptor()  # Windows renames no open file
                    replace(temporary, file)
                except OSError as error:
                    stream.reopen(temporary)
                    stream.fail(error)
    finally:
        stream.close_descriptor()
        temporary.unlink(missing_ok=True)


def check_output(file: Path | None) -> None:
    """Raise UsageError where a file could not be written: before a model is loaded, not behind it."""
    if file is None:
        return
    number = _descriptor(file)
    try:
        if number is not None:
            os.fstat(number)
            return
        file = expand_home(file)
        if not _exists(file):
            temporary, descriptor = _temporary(file.resolve())
            os.close(descriptor)
            temporary.unlink()
    except OSError as error:  # a descriptor that is not open, a name that is too long, a loop of links
        raise _cannot(file, error) from None
    if file.is_dir():
        raise UsageError(f"{file} is a folder", "choose another --output-file")


def _exists(file: Path) -> bool:
    """Raises OSError for what is neither there nor can be made, such as a link to itself."""
    try:
        file.stat()
    except FileNotFoundError:
        return False
    return True


def _descriptor(file: Path) -> int | None:
    """The open descriptor that a name stands for: `-`, /dev/stdout, /dev/fd/N, and links to these."""
    if str(file) == "-":
        return 1
    name = os.path.join(os.path.realpath(os.path.dirname(expand_home(file)) or "."), file.name)
    for _ in range(_MOST_LINKS):
        if name in _NAMED:
            return _NAMED[name]
        if (found := _DESCRIPTOR.fullmatch(name)) and found[1] in (None, "self", "thread-self", str(os.getpid())):
            return int(found[2])
        try:
            target = os.path.join(os.path.dirname(name), os.readlink(name))
        except OSError:
            return None
        name = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
    return None


def _is_special(file: Path) -> bool:
    with suppress(OSError):
        return not stat.S_ISREG(file.stat().st_mode)
    return False


def _open_special(file: Path, interruption: Interruption) -> int:
    """Open a device or a pipe. A pipe without a reader is waited for in steps, so that a signal is seen."""
    if not (hasattr(os, "O_NONBLOCK") and stat.S_ISFIFO(file.stat().st_mode)):
        return os.open(file, os.O_WRONLY)
    while True:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if interruption.flag.wait(_LOOK_S):
                sys.exit(interruption.exit_code)
            continue
        os.set_blocking(descriptor, True)
        return descriptor


def _temporary(file: Path) -> tuple[Path, int]:
    """A file beside another, with the permissions that it has or would get."""
    try:
        descriptor, temporary = temporary_beside(file)
    except OSError as error:
        raise _cannot(file, error) from None
    return temporary, descriptor


def _cannot(file: Path, error: OSError) -> UsageError:
    return UsageError(f"{file} cannot be written: {error.strerror}", "choose another --output-file")
