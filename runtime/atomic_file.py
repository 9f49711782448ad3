"""Writing a file so that a reader, or a crash, finds the old contents or the new ones, never a part.

The new contents go into a temporary file in the same folder, are flushed to the disk, and take the file's name by one
rename. A link keeps pointing where it did: its target is replaced. After any failure no temporary file is left.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dslite.runtime.system.files import replace


@contextmanager
def replacing(file: Path, *, mode: int | None = None, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes replace `file` when the block ends without an error. Raises OSError.

    The file keeps its permissions; a new one gets `mode`, by default what `open` would give it. `sync` False leaves out
    the flush to the disk: for what can be made again.
    """
    target = file.resolve()
    descriptor, temporary = temporary_beside(target, mode=mode)
    try:
        with open(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_file(file: Path, data: bytes, *, mode: int | None = None, sync: bool = True) -> None:
    """Replace a file's contents; see `replacing`. Raises OSError."""
    with replacing(file, mode=mode, sync=sync) as stream:
        stream.write(data)


def temporary_beside(target: Path, *, mode: int | None = None) -> tuple[int, Path]:
    """An empty file in the folder of `target`, with the permissions that `target` has or would get. Raises OSError.

    Returns its descriptor, for reading and writing, and its path: `.NAME.random.tmp`.
    """
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.chmod(name, _mode(target, mode))
    return descriptor, Path(name)


def _mode(target: Path, mode: int | None) -> int:
    with suppress(FileNotFoundError):
        return target.stat().st_mode & 0o7777
    if mode is not None:
        return mode
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
