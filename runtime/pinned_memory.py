"""Host memory that is registered with CUDA ("pinned"), so that copies from it run at full speed and beside computing.

Registered rather than allocated pinned: torch's allocator rounds blocks up to powers of two. In chunks: where the
system refuses more (WSL2 pins about half of the memory), what was registered stays so, and the rest is copied through
the driver's own buffers, at about half the speed.
"""

import logging
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_CHUNK_BYTES = 2 << 30


class HostMemoryRuntime(Protocol):
    """What registering needs of CUDA."""

    def register(self, address: int, nbytes: int) -> bool:
        """Register a range; False where that is refused. Leaves no error behind."""
        ...

    def unregister(self, address: int) -> None:
        """Undo it, once no copy reads the range any more. Raises nothing."""
        ...


class _CudaRuntime:
    """CUDA's runtime, as torch has loaded it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def register(self, address: int, nbytes: int) -> bool:
        try:
            status = int(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0))
        except (RuntimeError, AssertionError):
            return False
        if status:
            clear_error(self._device)
        return status == 0

    def unregister(self, address: int) -> None:
        with suppress(RuntimeError):
            torch.cuda.synchronize(self._device)
            if int(torch.cuda.cudart().cudaHostUnregister(address)):
                clear_error(self._device)


def clear_error(device: torch.device) -> None:
    """Clear the error that a failed call of CUDA's runtime leaves with the thread.

    torch asks for it behind every launch (C10_CUDA_KERNEL_LAUNCH_CHECK) and would report it as that launch's. So one is
    made here: it raises, and clears the error.
    """
    with suppress(RuntimeError):
        _launch(device)


def _launch(device: torch.device) -> None:
    torch.empty(1, device=device).fill_(1)


class HostRegistration:
    """A tensor of host memory, registered from its beginning on as far as the system allows, until `close`.

    It keeps the memory: pages that are returned to the system while they are registered stay pinned, and a later
    registration at their address fails, or reads the old pages.
    """

    def __init__(
        self, memory: Tensor, piece: int, device: torch.device, *, runtime: HostMemoryRuntime | None = None
    ) -> None:
        """`piece`: bytes that are copied at once. No chunk ends inside one, because CUDA refuses a copy from memory
        that is registered in part (cudaMemcpyAsync).
        """
        self._memory: Tensor | None = memory
        self._runtime = runtime or _CudaRuntime(device)
        self._chunks: list[int] = []
        self.nbytes = 0
        chunk = max(1, _CHUNK_BYTES // piece) * piece
        for start in range(0, memory.nbytes, chunk):
            size = min(chunk, memory.nbytes - start)
            if not self._runtime.register(memory.data_ptr() + start, size):
                break
            self._chunks.append(memory.data_ptr() + start)
            self.nbytes += size
        if not self.whole:
            log.warning(
                "the system pins %.1f of %.1f GB of host memory: copies of the rest to the GPU are slower",
                self.nbytes / 1e9,
                memory.nbytes / 1e9,
            )

    @property
    def whole(self) -> bool:
        """Whether all of the memory is registered."""
        return self._memory is not None and self.nbytes == self._memory.nbytes

    def close(self) -> None:
        """Wait for copies, undo the registrations, and let the memory go."""
        while self._chunks:
            self._runtime.unregister(self._chunks.pop())
        self._memory = None
