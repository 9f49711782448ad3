"""A file of weights as memory, and what happens when its pages go away under it.

Reading a page that a file has lost, because it was cut or the disk failed, ends a process with SIGBUS.
The compiled guard (mapped_pages.c) lets zeros be read instead and remembers it: `check`, asked behind every pass, then
throws away what was computed. Without the guard `check`, asked before a pass as well, still finds what was cut by then;
a file that is cut while a pass reads it ends the process.
"""

import ctypes
import threading
import warnings
import weakref
from functools import cache
from pathlib import Path

import torch

from dslite.runtime.errors import CheckpointError
from dslite.runtime.system.files import map_for_reading
from dslite.runtime.weights.watched_file import REMEDY, WatchedFile

_lock = threading.Lock()


class MappedFile:
    """The bytes of a file as a uint8 tensor that reads pages as they are touched."""

    def __init__(self, path: Path, size: int) -> None:
        """`size` is what the file's header says. Raises CheckpointError."""
        self._file = WatchedFile(path, size)
        try:
            mapped = map_for_reading(self._file.fd)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be mapped: {error.strerror}", REMEDY) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the bytes are read-only: that is what we want
            self.bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        self._number = -1
        if (library := _library()) is not None:
            with _lock:
                self._number = library.dslite_guard(self.bytes.data_ptr(), self.bytes.nbytes)
        if self._number >= 0:
            weakref.finalize(mapped, _release, self._number)

    def check(self) -> None:
        """Raise CheckpointError if the file is no longer what it was, or could not be read."""
        self._file.check()
        library = _library()
        if library is not None and self._number >= 0 and library.dslite_lost(self._number):
            raise CheckpointError(f"{self._file.path} could not be read: pages of it are lost", REMEDY)


def _release(number: int) -> None:
    library = _library()
    if library is not None:
        with _lock:
            library.dslite_release(number)


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled guard beside this file, or None where it was not built or cannot run here."""
    for file in sorted(Path(__file__).parent.glob("_mapped_pages*.so")):
        try:
            library = ctypes.CDLL(str(file))
            library.dslite_guard.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
            library.dslite_lost.argtypes = library.dslite_release.argtypes = [ctypes.c_int]
            library.dslite_release.restype = None
        except (OSError, AttributeError):
            continue  # built for another system
        return library
    return None
