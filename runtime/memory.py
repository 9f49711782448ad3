"""Memory that runs out: how an error says so, and what is tried again after something was given back."""

import errno
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from dslite.runtime.errors import OutOfMemoryError

Made = TypeVar("Made")


class GivesBack(Protocol):
    """What holds memory that it can do without, such as expert slots."""

    def give_back(self) -> bool:
        """Free some of it; False where no more can be spared."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # of mmap
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def with_room(make: Callable[[], Made], cache: GivesBack | None, what: str) -> Made:
    """The result of `make`, tried again with fewer expert slots as long as memory is short. Raises OutOfMemoryError."""
    while True:
        try:
            return make()
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            shortage = OutOfMemoryError.of(error, what)
        # Outside of the handler: the error's traceback would keep the memory of what failed.
        if cache is None or not cache.give_back():
            raise shortage
