"""Which pages of a file the system keeps in memory: what was loaded before is read from there, not from the disk."""

import os
import weakref
from contextlib import suppress

import numpy as np

from dslite.runtime.system.files import map_for_reading, mincore, reopen
from dslite.runtime.system.memory import PAGE_SIZE


class PageCache:
    """The pages of an open file that are in memory."""

    def __init__(self, descriptor: int) -> None:
        """`descriptor` is one with a page cache, which this object closes. Raises OSError, ValueError."""
        self.fd = descriptor
        self.close = weakref.finalize(self, os.close, self.fd)
        # Only its address is used: mincore looks at the pages and reads none.
        self._pages = np.frombuffer(map_for_reading(self.fd), dtype=np.uint8)

    @classmethod
    def of(cls, fd: int) -> "PageCache | None":
        """The page cache of a file that is open past it; None where the system does not say (outside of Linux)."""
        with suppress(OSError, ValueError):
            if mincore() is not None and (descriptor := reopen(fd)) is not None:
                return cls(descriptor)
        return None

    def holds(self, start: int, count: int) -> bool:
        """Whether all of `count` bytes from byte `start`, a page's first, are in memory."""
        look = mincore()
        count = min(count, self._pages.nbytes - start)
        resident = np.zeros(-(-max(count, 0) // PAGE_SIZE), dtype=np.uint8)
        if look is None or count <= 0 or look(self._pages.ctypes.data + start, count, resident.ctypes.data):
            return False
        return bool((resident & 1).all())
