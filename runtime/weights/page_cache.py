"""What the system keeps of a file in memory: read from there, loading a second time need not wait for the disk."""

import ctypes
import mmap
import os
import sys
import weakref
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np


class PageCache:
    """The pages of an open file that are in memory."""

    def __init__(self, fd: int) -> None:
        """`fd` may be one that reads past the page cache. Raises OSError."""
        self.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)  # the same file, whatever its name means by now
        self.close = weakref.finalize(self, os.close, self.fd)
        # Only looked at, never read.
        self._pages = np.frombuffer(mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ), dtype=np.uint8)

    @classmethod
    def of(cls, fd: int) -> "PageCache | None":
        """None where the system does not tell."""
        with suppress(OSError, ValueError):
            return cls(fd) if _mincore() is not None else None
        return None

    def holds(self, start: int, count: int) -> bool:
        """Whether all of `count` bytes from byte `start`, a page's first, are in memory."""
        mincore = _mincore()
        count = min(count, self._pages.nbytes - start)
        told = np.zeros(-(-max(count, 0) // mmap.PAGESIZE), dtype=np.uint8)
        if mincore is None or count <= 0 or mincore(self._pages.ctypes.data + start, count, told.ctypes.data):
            return False
        return bool((told & 1).all())


@cache
def _mincore() -> Any:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None), "mincore", None)
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        function.restype = ctypes.c_int
    return function
