"""Memory that runs out: how an error says so, and what is tried again after something was given back."""

import errno
import gc
import re
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

from dslite.runtime.errors import OutOfMemoryError

Made = TypeVar("Made")


# Texts of errors that are no torch.OutOfMemoryError: of the CPU's allocator, of calls that allocate beside torch's
# allocator (pinned memory, a graph's instance, a library's handle, a kernel's module), and of Apple's GPUs.
_TEXTS = re.compile(
    r"DefaultCPUAllocator|(CUDA|HIP)( driver)? error: out of memory|MPS backend out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUBLAS_STATUS_NOT_INITIALIZED.*create|CUDNN_STATUS_ALLOC_FAILED"
    r"|Triton Error \[(CUDA|HIP)\]: out of memory",
    re.IGNORECASE | re.DOTALL,
)


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
    return isinstance(error, RuntimeError) and _TEXTS.search(str(error)) is not None


def free_gpu_memory(device: torch.device) -> int:
    """Bytes that may still be allocated on a GPU: what its driver calls free, and what torch has reserved and not used.

    Raises RuntimeError where the GPU gives this process no context.
    """
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def release_unused(device: torch.device) -> None:
    """Return what a model that was dropped leaves behind: objects in circles, and blocks that torch keeps for later.

    The blocks of an earlier model have other sizes than the next one's, so that torch could not reuse most of them.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


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
