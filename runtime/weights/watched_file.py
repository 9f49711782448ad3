"""An open file of weights that notices when the file is changed while it is in use."""

import os
import weakref
from pathlib import Path

from dslite.runtime.errors import CheckpointError
from dslite.runtime.system.files import open_descriptor

REMEDY = "check the disk and the file; if it was changed, start again"


class WatchedFile:
    """A file known by its open descriptor: another file that takes over the name has no effect."""

    def __init__(self, path: Path, size: int, *, direct: bool = False) -> None:
        """`size` is what the file's header says. `direct` reads past the page cache where the system can.

        Raises CheckpointError.
        """
        self.path = path
        try:
            self.fd, self.direct = open_descriptor(path, direct=direct)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}", REMEDY) from None
        self.close = weakref.finalize(self, os.close, self.fd)
        self._identity = self._size_and_time()
        if self._identity[0] != size:
            raise CheckpointError(f"{path} has {self._identity[0]} bytes, and its header speaks of {size}", REMEDY)

    def _size_and_time(self) -> tuple[int, int]:
        status = os.fstat(self.fd)
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Raise CheckpointError if the file is no longer what it was when it was opened."""
        size, changed = self._size_and_time()
        if size < self._identity[0]:
            raise CheckpointError(f"{self.path} was cut to {size} of {self._identity[0]} bytes while in use", REMEDY)
        if (size, changed) != self._identity:
            raise CheckpointError(f"{self.path} was changed while in use", REMEDY)
