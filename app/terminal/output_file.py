"""Where a command writes: stdout, or a file that appears whole when all is written."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dslite.runtime.errors import UsageError


@dataclass(frozen=True)
class Output:
    """As what an answer is written, and where to (None: stdout)."""

    format: str  # text, json or jsonl
    file: Path | None = None
    stream: bool = True
    extract: bool = False
    stats: bool = False

    def __post_init__(self) -> None:
        if self.format not in ("text", "json", "jsonl"):
            raise UsageError(f"--output is {self.format!r}; it must be text, json or jsonl")


@contextmanager
def open_output(file: Path | None) -> Iterator[TextIO]:
    """stdout for None; else a stream that replaces the file at its end, and leaves it alone on an error."""
    if file is None:
        yield sys.stdout
        return
    file = file.expanduser()
    if file.exists() and not file.is_file():
        # A device or a pipe is written to, never replaced.
        with _opened(file) as stream:
            yield stream
        return
    file = file.resolve()
    temporary, stream = _temporary(file)
    try:
        with stream:
            yield stream
            _finish(stream, temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_output(file: Path | None) -> None:
    """Raise UsageError where a file could not be written: before a model is loaded, not behind it."""
    if file is None:
        return
    file = file.expanduser()
    if file.is_dir():
        raise UsageError(f"{file} is a folder", "choose another --output-file")
    if not file.exists():
        temporary, stream = _temporary(file.resolve())
        stream.close()
        temporary.unlink()


def _finish(stream: TextIO, temporary: Path, file: Path) -> None:
    try:
        stream.flush()
        os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise _cannot(file, error) from None


def _opened(file: Path) -> TextIO:
    try:
        return file.open("w", encoding="utf-8")
    except OSError as error:
        raise _cannot(file, error) from None


def _temporary(file: Path) -> tuple[Path, TextIO]:
    """A file beside another, with the permissions that it has or would get."""
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:
        raise _cannot(file, error) from None
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, file.stat().st_mode & 0o777 if file.exists() else 0o666 & ~mask)
    return Path(name), open(descriptor, "w", encoding="utf-8")


def _cannot(file: Path, error: OSError) -> UsageError:
    return UsageError(f"{file} cannot be written: {error.strerror}", "choose another --output-file")
