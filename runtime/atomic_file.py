"""Writing a file so that a reader, or a crash, finds the old contents or the new ones, never a part.

The new contents go into a temporary file in the same folder, are flushed to the disk, and take the file's name by one
rename. A link keeps pointing where it did: its target is replaced. After any failure no temporary file is left.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path, *, mode: int | None = None, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes replace `file` when the block ends without an error. Raises OSError.

    The file keeps its permissions; a new one gets `mode`, by default what `open` would give it. `sync` False leaves out
    the flush to the disk: for what can be made again.
    """
    target = file.resolve()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with open(descriptor, "w+b") as stream:
            os.chmod(name, _mode(target, mode))
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    if sync:
        _sync_folder(target.parent)


def write_file(file: Path, data: bytes, *, mode: int | None = None, sync: bool = True) -> None:
    """Replace a file's contents; see `replacing`. Raises OSError."""
    with replacing(file, mode=mode, sync=sync) as stream:
        stream.write(data)


@contextmanager
def replacing_text(file: Path, *, mode: int | None = None, sync: bool = True) -> Iterator[io.TextIOWrapper]:
    """`replacing` for UTF-8 text, its line ends as they are written. Raises OSError."""
    with replacing(file, mode=mode, sync=sync) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()


def _mode(target: Path, mode: int | None) -> int:
    with suppress(FileNotFoundError):
        return target.stat().st_mode & 0o7777
    if mode is not None:
        return mode
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; where a system cannot open folders (Windows), it does so by itself."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
