"""Files whose text goes into a prompt: of `complete -f`, and attached in the chat.

A file is read as text only where it is a regular one. Of a folder or a pattern, hidden files are left out, and so are
links that lead out of their folder: what a user attaches with one word is what stands there.
"""

import glob
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from dslite.app.terminal.streams import decode
from dslite.runtime.errors import UsageError
from dslite.runtime.system.folders import expand_home
from dslite.runtime.units import size_text

MOST_BYTES = 20_000_000
MOST_FILES = 500
_PATTERN = "*?["


def file_block(name: str, text: str) -> str:
    """A file's text as it stands in a prompt: under its name."""
    return f"{name}:\n{text.rstrip()}"


def read_attached(path: Path) -> str:
    """The text of a regular file. Raises UsageError."""
    try:
        if path.is_symlink() and not _stays(path):
            raise UsageError(f"{path} is a link to {path.resolve()}, in another folder", "attach that file itself")
        # Not blocking: the open of a pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UsageError(f"{path} is no regular file", "attach a file of text")
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the file {path} cannot be read: {reason}", "check its path and permissions") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path} has more than {size_text(MOST_BYTES)}", "attach a part of it")
    text = decode(data, f"the file {path}")
    if "\0" in text:
        raise UsageError(f"{path} is no text: it has NUL characters", "attach a file of text")
    return text


def find_files(words: str) -> list[Path]:
    """The file that a user names, or those of a folder or a pattern, at most MOST_FILES. Raises UsageError."""
    path = expand_home(words)
    if path.is_dir():
        found = sorted(islice(_of_folder(path), MOST_FILES + 1))  # no further: it may be all of a disk
    elif any(character in words for character in _PATTERN) and not path.exists():
        found = sorted(islice(_of_pattern(path), MOST_FILES + 1))
    else:
        return [path]
    if not found:
        raise UsageError(f"{words} has no file to attach", "hidden files and links elsewhere are left out")
    if len(found) > MOST_FILES:
        raise UsageError(f"{words} has more than {MOST_FILES} files", "name fewer of them")
    if (total := sum(file.stat().st_size for file in found)) > MOST_BYTES:
        raise UsageError(f"{words} has {size_text(total)}; the most is {size_text(MOST_BYTES)}", "name fewer files")
    return found


def _of_folder(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and _counts(Path(place, name)):
                yield Path(place, name)


def _of_pattern(pattern: Path) -> Iterator[Path]:
    """Files that match. A pattern follows links to folders: what lies outside of its fixed part is left out."""
    fixed = next(place for place in pattern.parents if not any(character in str(place) for character in _PATTERN))
    inside = fixed.resolve()
    for name in glob.iglob(str(pattern), recursive=True, include_hidden=False):
        if _counts(Path(name)) and Path(name).resolve().is_relative_to(inside):
            yield Path(name)


def _counts(path: Path) -> bool:
    """Whether a file of a folder or a pattern is one to attach."""
    try:
        return stat.S_ISREG(path.stat().st_mode) and (not path.is_symlink() or _stays(path))
    except OSError:
        return False


def _stays(link: Path) -> bool:
    """Whether a link leads to something in its own folder, or below it."""
    return link.resolve().is_relative_to(link.parent.resolve())
