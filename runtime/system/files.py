"""Files: reads at a position, reads past the page cache, the room on a disk, replacing a file at once."""

import ctypes
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from dslite.runtime.system import system_name

# Windows opens descriptors as text, where \r\n becomes \n, unless O_BINARY is given.
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
_REPLACE_TRIES = 20
_REPLACE_WAIT_S = 0.05
_seek_lock = threading.Lock()


def open_descriptor(path: Path, *, direct: bool = False) -> tuple[int, bool]:
    """Open a file for reading: its descriptor, and whether reads go past the page cache. Raises OSError.

    `direct` asks for O_DIRECT, which wants whole pages, and is left out where the system or the file system has none.
    """
    flag = getattr(os, "O_DIRECT", 0) if direct else 0
    if flag:
        try:
            return os.open(path, _READ | flag), True
        except OSError:
            pass
    return os.open(path, _READ), False


def read_at(descriptor: int, target: memoryview, position: int) -> int:
    """Read from a byte of a file into memory; how many bytes came. Threads may do it at once. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [target], position)
    if hasattr(os, "pread"):  # macOS before 11
        data = os.pread(descriptor, len(target), position)
    else:  # Windows: the position is the descriptor's own
        with _seek_lock:
            os.lseek(descriptor, position, os.SEEK_SET)
            data = os.read(descriptor, len(target))
    target[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of some memory from a byte of a file on. Threads may do it at once. Raises OSError."""
    done = 0
    while done < len(data):
        if hasattr(os, "pwrite"):
            done += os.pwrite(descriptor, data[done:], position + done)
            continue
        with _seek_lock:  # Windows
            os.lseek(descriptor, position + done, os.SEEK_SET)
            done += os.write(descriptor, data[done:])


def drop_cached_pages(descriptor: int, start: int = 0, count: int = 0) -> None:
    """Let the system forget what it keeps of a file in memory; `count` 0 is to its end. Only Linux can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, count, os.POSIX_FADV_DONTNEED)


def name_of_descriptor(descriptor: int) -> str | None:
    """A path that opens the very file of an open descriptor; None on Windows, which has none."""
    if system_name() == "windows":
        return None
    return f"/proc/self/fd/{descriptor}" if system_name() == "linux" else f"/dev/fd/{descriptor}"


def reopen(descriptor: int) -> int | None:
    """A second descriptor of the same file, whatever its name means by now, with a page cache; None where none is."""
    if system_name() != "linux":
        return None
    try:
        return os.open(f"/proc/self/fd/{descriptor}", _READ)
    except OSError:
        return None


@cache
def mincore() -> Callable[[int, int, int], int] | None:
    """mincore(2): (address, bytes, address of a byte for each page) → 0; None outside of Linux."""
    if system_name() != "linux":
        return None
    function: Any = getattr(ctypes.CDLL(None), "mincore", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def map_for_reading(descriptor: int) -> mmap.mmap:
    """A whole file as memory that reads its pages as they are touched. Raises OSError, ValueError if it is empty."""
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def free_disk_bytes(place: Path) -> int:
    """Bytes that this user may still write on the disk of a folder, or of the part of its path that exists."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def replace(source: Path, target: Path) -> None:
    """Give a file the name of another at once. Raises OSError.

    Windows refuses it while another process has the target open, a scanner of viruses for a moment: tried for a second.
    """
    for left in reversed(range(_REPLACE_TRIES)):
        try:
            source.replace(target)
            return
        except PermissionError:
            if system_name() != "windows" or left == 0:
                raise
            time.sleep(_REPLACE_WAIT_S)
