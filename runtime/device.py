"""The one door to streams, events and pinned memory.

Everything that moves experts asks a ComputeDevice. On CUDA copies run on a stream of their own and are ordered against
the computing by events; elsewhere there is one order of things, and an event says nothing. Tests put a recording double
in this place.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslite.runtime.memory import free_gpu_memory
from dslite.runtime.pinned_memory import HostRegistration, clear_error
from dslite.runtime.system.memory import anonymous_map

Event = Any  # what a device gives out and takes back; None where everything is in order anyway
Launch = Callable[[], None]
Brought = Callable[[], tuple[NDArray[np.int64], list[Tensor]]]
Copies = Sequence[tuple[Tensor, Tensor]]  # (target, source)


class ComputeDevice(Protocol):
    """Where the network computes, and how bytes get there."""

    device: torch.device

    def allocate(self, nbytes: int) -> Tensor:
        """Uninitialised bytes on the device. Raises what `is_out_of_memory` knows."""
        ...

    def to_host(self, ids: Tensor, others: Sequence[Tensor] = ()) -> tuple[NDArray[np.int64], list[Tensor]]:
        """Whole numbers that the host must know, and what goes with them: waits for all at once."""
        ...

    def bring(self, ids: Tensor, others: Sequence[Tensor] = ()) -> Brought:
        """Begin to bring the same to the host behind what is launched so far; what is returned waits for it."""
        ...

    def to_device(self, values: Tensor | NDArray[Any]) -> Tensor:
        """Something small for the next launches. Does not wait."""
        ...

    def put(self, target: Tensor, values: Tensor) -> None:
        """Copy something small from the host into a tensor for the next launches. Does not wait."""
        ...

    def record(self, launch: Launch) -> Launch:
        """Run `launch`, which waits for nothing; return what runs it again: the same kernels on the same memory."""
        ...

    def copy(self, copies: Copies, after: Event = None) -> Event:
        """Copy beside the computing, not before `after` has come to pass; the event says that all is copied."""
        ...

    def staging(self, nbytes: int) -> Tensor:
        """Host memory, from a page's first byte on, that `copy` reads at full speed where the system allows it."""
        ...

    def pin(self, memory: Tensor, piece: int) -> HostRegistration | None:
        """Have `copy` read host memory at full speed, as far as the system allows, until the registration is closed.

        `piece`: bytes from the beginning on that one copy takes. None where copies need no such thing.
        """
        ...

    def free_bytes(self) -> int | None:
        """Bytes that may still be allocated; None for host memory, whose pages are taken as they are touched."""
        ...

    def mark(self) -> Event:
        """An event for when everything launched so far is computed."""
        ...

    def wait(self, event: Event) -> None:
        """What is launched from now on is computed after the event. The host does not wait."""
        ...

    def reach(self, event: Event) -> None:
        """The host waits until an event has come to pass."""
        ...

    def passed(self, event: Event) -> bool:
        """Whether an event has come to pass."""
        ...

    def settle(self) -> None:
        """The host waits until nothing is computed or copied, and memory that was let go is the system's again."""
        ...


class PlainDevice:
    """A device on which things happen in the order in which they are asked for: the CPU, and MPS."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def allocate(self, nbytes: int) -> Tensor:
        if self.device.type != "cpu":
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        return anonymous_memory(nbytes)

    def to_host(self, ids: Tensor, others: Sequence[Tensor] = ()) -> tuple[NDArray[np.int64], list[Tensor]]:
        return ids.to("cpu").numpy(), [other.to("cpu") for other in others]

    def bring(self, ids: Tensor, others: Sequence[Tensor] = ()) -> Brought:
        brought = self.to_host(ids.clone(), [other.clone() for other in others])
        return lambda: brought

    def to_device(self, values: Tensor | NDArray[Any]) -> Tensor:
        return torch.as_tensor(values).to(self.device)

    def put(self, target: Tensor, values: Tensor) -> None:
        target.copy_(values)

    def record(self, launch: Launch) -> Launch:
        launch()
        return launch

    def copy(self, copies: Copies, after: Event = None) -> Event:
        for target, source in copies:
            target.copy_(source)
        return None

    def staging(self, nbytes: int) -> Tensor:
        return anonymous_memory(nbytes)

    def pin(self, memory: Tensor, piece: int) -> HostRegistration | None:
        return None

    def free_bytes(self) -> int | None:
        return None

    def mark(self) -> Event:
        return None

    def wait(self, event: Event) -> None:
        pass

    def reach(self, event: Event) -> None:
        pass

    def passed(self, event: Event) -> bool:
        return True

    def settle(self) -> None:
        pass


class CudaDevice:
    """A GPU with a stream for copies beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device)
        self._captures = torch.cuda.Stream(device)  # one for each device: torch's own is the first device's
        self._pins = True  # until pinned memory was refused, as it may be under WSL2

    def allocate(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def to_host(self, ids: Tensor, others: Sequence[Tensor] = ()) -> tuple[NDArray[np.int64], list[Tensor]]:
        return self.bring(ids, others)()

    def bring(self, ids: Tensor, others: Sequence[Tensor] = ()) -> Brought:
        sources = [ids, *others]
        targets = [self._pinned(source.shape, source.dtype) for source in sources]
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
        event = self.mark()

        def brought() -> tuple[NDArray[np.int64], list[Tensor]]:
            event.synchronize()
            return targets[0].numpy(), targets[1:]

        return brought

    def to_device(self, values: Tensor | NDArray[Any]) -> Tensor:
        # Pinned memory comes from torch's cache, which keeps a block until its copy has run.
        return self._pinned_copy(torch.as_tensor(values)).to(self.device, non_blocking=True)

    def put(self, target: Tensor, values: Tensor) -> None:
        target.copy_(self._pinned_copy(values), non_blocking=True)

    def record(self, launch: Launch) -> Launch:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):  # Triton launches on the current one
            launch()  # compiles what is compiled at its first use, which a recording would not survive
            with _capture(graph, self._captures):
                launch()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay

    def _pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory for a copy that nobody waits for; where none can be pinned, other memory, for slower copies."""
        if self._pins:
            try:
                return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
            except RuntimeError:
                self._pins = False
                clear_error(self.device)
        return torch.empty(tuple(shape), dtype=dtype)

    def _pinned_copy(self, values: Tensor) -> Tensor:
        return self._pinned(values.shape, values.dtype).copy_(values)

    def copy(self, copies: Copies, after: Event = None) -> Event:
        with torch.cuda.stream(self._copies):
            if after is not None:
                self._copies.wait_event(after)
            for target, source in copies:
                target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._copies)
        return event

    def staging(self, nbytes: int) -> Tensor:
        # From torch's cache of pinned memory, whose blocks are powers of two, as those of the loader are.
        memory = self._pinned((nbytes,), torch.uint8)
        return memory if self._pins else anonymous_memory(nbytes)

    def pin(self, memory: Tensor, piece: int) -> HostRegistration | None:
        return HostRegistration(memory, piece, self.device)

    def free_bytes(self) -> int | None:
        return free_gpu_memory(self.device)

    def mark(self) -> Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: Event) -> None:
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def reach(self, event: Event) -> None:
        if event is not None:
            event.synchronize()

    def passed(self, event: Event) -> bool:
        return event is None or bool(event.query())

    def settle(self) -> None:
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


def compute_device(device: torch.device) -> ComputeDevice:
    return CudaDevice(device) if device.type == "cuda" else PlainDevice(device)


def anonymous_memory(nbytes: int) -> Tensor:
    """Host memory outside of torch's allocator, in whole pages, huge ones where the system has them.

    Untouched pages cost nothing. Returns uint8 of shape (nbytes,).
    """
    return torch.frombuffer(anonymous_map(nbytes), dtype=torch.uint8)[:nbytes]


@contextmanager
def _capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """Record what is launched inside. Whatever fails there is raised as it is, and the thread's stream is as before.

    torch.cuda.graph stays on its stream, and hides the error, where ending the recording fails too. Other threads may
    use the GPU meanwhile: only what this one does is recorded, and must be fit for it. The garbage collector would free
    memory of the device in a recording, which ends it.
    """
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
    finally:
        if collects:
            gc.enable()
