"""A GPU that is not there: fake tensors on 'cuda', streams and events as clocks, and an eye on every operation.

`FakeGpu` stands in for the runtime's CudaDevice. `Watch` sees each operation that runs: it refuses copies between
devices that do not come through the FakeGpu, and tells it which arena buffers a computation reads. Each stream has a
clock of what it knows to have happened on the other; a copy into a buffer that a computation may still read, or a
computation on a buffer that may not have arrived, is an OrderError.
"""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
Route = Callable[[int, int], NDArray[np.int64]]
Clock = dict[str, int]  # stream → operations of it that have happened


class OrderError(AssertionError):
    """A buffer is read and written without an order between the two."""


class CrossingError(AssertionError):
    """Bytes cross between host and device without the device interface."""


@functools.cache
def cuda_guard() -> bool:
    """Build and load the guard; False where there is no C++ compiler, or a real GPU has one already."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None or torch.cuda.is_available():
        return torch.cuda.is_available()
    source = Path(__file__).with_name("fake_cuda.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fake_cuda.so"
        include = [f"-I{path}" for path in cpp_extension.include_paths()]
        link = [f"-L{path}" for path in cpp_extension.library_paths()]
        command = [
            compiler,
            "-std=c++20",
            "-shared",
            "-fPIC",
            *include,
            str(source),
            *link,
            "-lc10",
            "-o",
            str(library),
        ]
        subprocess.run(command, check=True)
        torch.ops.load_library(library)
    return True


class FakeGpu:
    """A double of the device interface. `route(T, K)` gives the experts that the router is said to have chosen."""

    device = CUDA

    def __init__(
        self, route: Callable[[int, int], NDArray[np.int64]], *, arrives: Callable[[], bool] = lambda: True
    ) -> None:
        self._route, self._arrives = route, arrives
        self._now: dict[str, Clock] = {"compute": {}, "copy": {}, "host": {}}
        self._blocks: list[tuple[Any, int]] = []  # storage, bytes of a buffer
        self._reads: dict[tuple[int, int], int] = {}  # buffer → compute's clock at its last read
        self._writes: dict[tuple[int, int], int] = {}  # buffer → copy's clock at its last write
        self._staged: dict[Any, int] = {}  # host storage → copy's clock at the last copy out of it
        self.inside = False  # a call of the device interface is under way
        self.log: list[str] = []
        self.allocated = 0

    # What CudaDevice does.

    def allocate(self, nbytes: int) -> Tensor:
        self.allocated += nbytes
        block = torch.empty(nbytes, dtype=torch.uint8, device=CUDA)
        self._blocks.append((block.untyped_storage()._cdata, 0))
        return block

    def to_host(self, ids: Tensor, others: Sequence[Tensor] = ()) -> tuple[NDArray[np.int64], list[Tensor]]:
        self.log.append("to_host")
        self._merge("host", self._tick("compute"))
        return self._route(*ids.shape), [torch.empty(other.shape, dtype=other.dtype) for other in others]

    def bring(self, ids: Tensor, others: Sequence[Tensor] = ()) -> Callable[[], Any]:
        self.log.append("bring")
        behind = self._tick("compute")

        def brought() -> Any:
            self.log.append("brought")
            self._merge("host", behind)
            return self._route(*ids.shape), [torch.empty(other.shape, dtype=other.dtype) for other in others]

        return brought

    def to_device(self, values: Any) -> Tensor:
        kind = values.dtype if isinstance(values, Tensor) else torch.int64
        return torch.empty(tuple(values.shape), dtype=kind, device=CUDA)

    def copy(self, copies: Sequence[tuple[Tensor, Tensor]], after: Any = None) -> Any:
        self._merge("copy", self._now["host"])
        if after is not None:
            self._merge("copy", after)
        with self._crossing():
            for target, source in copies:
                self._write(target)
                self._staged[source.untyped_storage()._cdata] = self._now["copy"].get("copy", 0) + 1
                target.copy_(source, non_blocking=True)
        return self._tick("copy")

    def staging(self, nbytes: int) -> Tensor:
        self.log.append(f"staging {nbytes}")
        return torch.empty(nbytes, dtype=torch.uint8)

    def pin(self, memory: Tensor, piece: int) -> None:
        return None

    def free_bytes(self) -> None:
        return None

    def host_writes(self, staging: Tensor) -> None:
        """The host writes now into memory that copies may read."""
        if self._staged.get(staging.untyped_storage()._cdata, 0) > self._now["host"].get("copy", 0):
            raise OrderError("a staging buffer is overwritten before it has been copied")

    def mark(self) -> Any:
        return self._tick("compute")

    def wait(self, event: Any) -> None:
        if event is not None:
            self._merge("compute", event)

    def reach(self, event: Any) -> None:
        if event is not None:
            self._merge("host", event)

    def passed(self, event: Any) -> bool:
        return self._arrives()

    def settle(self) -> None:
        for stream in ("compute", "copy"):
            self._merge("host", dict(self._now[stream]))
        self.log.append("settle")

    # What is known of the order.

    def _tick(self, stream: str) -> Clock:
        clock = self._now[stream]
        clock[stream] = clock.get(stream, 0) + 1
        return dict(clock)

    def _merge(self, stream: str, seen: Clock) -> None:
        clock = self._now[stream]
        for other, time in seen.items():
            clock[other] = max(clock.get(other, 0), time)

    @contextmanager
    def _crossing(self) -> Any:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def _buffer(self, tensor: Tensor) -> tuple[int, int] | None:
        """The arena buffer whose bytes a tensor views."""
        storage = tensor.untyped_storage()._cdata
        for number, (block, size) in enumerate(self._blocks):
            if block == storage:
                return number, tensor.storage_offset() * tensor.element_size() // size if size else 0
        return None

    def know_buffers(self, size: int) -> None:
        """Bytes of a buffer of the arena."""
        self._blocks = [(block, size) for block, _ in self._blocks]

    def _write(self, target: Tensor) -> None:
        buffer = self._buffer(target)
        if buffer is None:
            return
        read = self._reads.get(buffer, 0)
        if read > self._now["copy"].get("compute", 0):
            raise OrderError(f"buffer {buffer} is overwritten while a computation may read it")
        self._writes[buffer] = self._now["copy"].get("copy", 0) + 1

    def compute_reads(self, tensor: Tensor) -> None:
        """A computation that was launched now reads a tensor."""
        buffer = self._buffer(tensor)
        if buffer is None:
            return
        self._merge("compute", self._now["host"])
        if self._writes.get(buffer, 0) > self._now["compute"].get("copy", 0):
            raise OrderError(f"buffer {buffer} is read before it has arrived")
        # The read happens at or before compute's next tick.
        self._reads[buffer] = self._now["compute"].get("compute", 0) + 1
        self.log.append(f"read {buffer}")


class Watch(TorchDispatchMode):
    """Sees every operation. `uploads` counts small copies from host to device outside the device interface."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self._gpu = gpu
        self.uploads = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if self._gpu.inside or func.namespace != "aten" or _is_view(func, tensors, results):
            return out
        self.operations += 1
        kinds = {tensor.device.type for tensor in tensors if tensor.dim()}
        gives = {tensor.device.type for tensor in results}
        if "cuda" in kinds and "cpu" in gives | (kinds if func is torch.ops.aten.copy_.default else set()):
            raise CrossingError(f"{func} brings bytes from the device to the host outside the device interface")
        self.uploads += "cpu" in kinds and "cuda" in gives
        for tensor in tensors:
            if tensor.device.type == "cuda":
                self._gpu.compute_reads(tensor)
        return out


def _is_view(func: Any, tensors: list[Tensor], results: list[Tensor]) -> bool:
    """Whether an operation only looks at memory in another way."""
    given = {tensor.untyped_storage()._cdata for tensor in tensors}
    return not func._schema.is_mutable and any(result.untyped_storage()._cdata in given for result in results)


@contextmanager
def fake_gpu(gpu: FakeGpu) -> Any:
    """Everything inside happens on fake tensors, under watch."""
    with FakeTensorMode(allow_non_fake_inputs=True), Watch(gpu) as watch:
        yield watch
