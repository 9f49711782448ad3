"""The sources of experts that are not in a slot: the protocol, and host memory. Files are in disk.py."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.moe import MLP
from dslite.runtime.device import ComputeDevice, Event, anonymous_memory
from dslite.runtime.planning.footprint import PAGE, expert_bytes

MATRICES = ("gate_proj", "up_proj", "down_proj")


class Fetch(Protocol):
    """The transfer of an expert into a buffer."""

    mlp: MLP  # views of the buffer, readable once `wait` has returned

    def wait(self) -> None:
        """What is launched from now on reads the expert in the buffer. Raises CheckpointError where reading failed."""
        ...

    def passed(self) -> bool:
        """Whether the transfer has ended, well or not."""
        ...


class ExpertSource(Protocol):
    """The slower memory behind the slots."""

    nbytes_moved: int  # of one expert

    def fetch(self, layer: int, expert: int, buffer: Tensor, after: Event) -> Fetch:
        """Begin to transfer an expert into a buffer, which kernels read until `after`."""
        ...

    def in_host_memory(self, layer: int, expert: int) -> MLP | None:
        """The expert in host memory, to be computed there; None where it is only on disk."""
        ...

    def close(self) -> None: ...


def expert_name(layer: int, expert: int, matrix: str) -> str:
    """The Hub's name of one matrix."""
    return f"model.layers.{layer}.mlp.experts.{expert}.{matrix}.weight"


def matrix_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """gate, up and down of an expert."""
    width, hidden = config.moe_intermediate_size, config.hidden_size
    return (width, hidden), (width, hidden), (hidden, width)


def packed(buffer: Tensor, config: ModelConfig, dtype: torch.dtype) -> MLP:
    """Views of a buffer that holds gate, up and down one behind the other."""
    nbytes = expert_bytes(config, dtype.itemsize)
    parts = buffer[:nbytes].split(nbytes // 3)
    return MLP(*(part.view(dtype).view(shape) for part, shape in zip(parts, matrix_shapes(config), strict=True)))


@dataclass
class _PendingCopy:
    mlp: MLP
    device: ComputeDevice
    event: Event

    def wait(self) -> None:
        self.device.wait(self.event)

    def passed(self) -> bool:
        return self.device.passed(self.event)


class HostSource:
    """Experts in host memory, as `take` gives them: from mapped files or from a HostArena."""

    def __init__(
        self, config: ModelConfig, device: ComputeDevice, dtype: torch.dtype, take: Callable[[int, int], MLP]
    ) -> None:
        self._config, self._device, self._dtype, self._take = config, device, dtype, take
        self.nbytes_moved = expert_bytes(config, dtype.itemsize)

    def fetch(self, layer: int, expert: int, buffer: Tensor, after: Event) -> Fetch:
        target, source = packed(buffer, self._config, self._dtype), self._take(layer, expert)
        copies = list(zip(target.tensors, source.tensors, strict=True))
        return _PendingCopy(target, self._device, self._device.copy(copies, after))

    def in_host_memory(self, layer: int, expert: int) -> MLP | None:
        mlp = self._take(layer, expert)
        return mlp if mlp.tensors[0].dtype is self._dtype else MLP(*(part.to(self._dtype) for part in mlp.tensors))

    def close(self) -> None:
        pass


class HostArena:
    """All routed experts in one piece of host memory, each from a page on, pinned where the system allows it."""

    def __init__(self, config: ModelConfig, layers: range, dtype: torch.dtype) -> None:
        self._config, self._layers, self._dtype = config, layers, dtype
        self._bytes = expert_bytes(config, dtype.itemsize)
        self._step = -(-self._bytes // PAGE) * PAGE
        self._memory = anonymous_memory(self._step * config.n_routed_experts * len(layers))

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def pin(self, device: ComputeDevice) -> bool:
        """Pin the filled arena for copies to a device, until it is dropped: registering touches every page.

        False where the system does not pin all of it.
        """
        pinned = device.pin(self._memory, self._step)
        if pinned is None:
            return True
        # Before the memory is returned to the system. The end of the process undoes everything anyway.
        weakref.finalize(self, pinned.close).atexit = False
        return pinned.whole

    def expert(self, layer: int, expert: int) -> MLP:
        """Views of an expert, to be filled or read."""
        start = ((layer - self._layers.start) * self._config.n_routed_experts + expert) * self._step
        return packed(self._memory[start : start + self._bytes], self._config, self._dtype)
