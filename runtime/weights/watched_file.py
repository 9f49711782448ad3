"""An open file of weights, and whether it still is what it was when it was opened."""

import os
import weakref
from pathlib import Path

from dslite.runtime.errors import CheckpointError

REMEDY = "check the disk and the file; if it was changed, start again"


class WatchedFile:
    """Knows its file by an open descriptor: whatever takes over the name is another file, and does no harm."""

    def __init__(self, path: Path, size: int, flags: int = 0) -> None:
        """`size` is what the file's header says. `flags` of os.open are left out where the system refuses them.

        Raises CheckpointError.
        """
        self.path = path
        self.flags = flags
        try:
            try:
                self.fd = os.open(path, os.O_RDONLY | flags)
            except OSError:
                self.flags = 0
                self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}", REMEDY) from None
        self.close = weakref.finalize(self, os.close, self.fd)
        self._identity = self._look()
        if self._identity[0] != size:
            raise CheckpointError(f"{path} has {self._identity[0]} bytes, and its header speaks of {size}", REMEDY)

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Raise CheckpointError if the file is no longer what it was."""
        size, changed = self._look()
        if size < self._identity[0]:
            raise CheckpointError(f"{self.path} was cut to {size} of {self._identity[0]} bytes while in use", REMEDY)
        if (size, changed) != self._identity:
            raise CheckpointError(f"{self.path} was changed while in use", REMEDY)
