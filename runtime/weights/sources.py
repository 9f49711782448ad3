"""The sources of experts that are not in a slot: the protocol, and host memory. Files are in disk.py."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.moe import MLP
from dslite.model.quantized import mlp_views, quantized
from dslite.model.quantized_layout import WeightFormat
from dslite.model.quantized_layout import expert_bytes as quantized_expert_bytes
from dslite.runtime.device import ComputeDevice, Event, anonymous_memory
from dslite.runtime.planning.footprint import expert_bytes, routed_format
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.packed_layout import MATRICES, whole_pages


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


def expert_entries(layer: int, expert: int, *, quantized: bool) -> list[str]:
    """The names of an expert's tensors in its file: one piece where it is quantized."""
    names = [expert_name(layer, expert, matrix) for matrix in MATRICES]
    return [names[0].removesuffix(f".{MATRICES[0]}.weight")] if quantized else names


@dataclass(frozen=True)
class ExpertForm:
    """How an expert lies in a buffer: gate, up and down one behind the other, in a dtype or quantized."""

    config: ModelConfig
    dtype: torch.dtype
    format: WeightFormat | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, dtype: torch.dtype) -> "ExpertForm":
        return cls(checkpoint.config, dtype, routed_format(checkpoint.weights))

    @property
    def nbytes(self) -> int:
        if self.format is not None:
            return quantized_expert_bytes(self.config, self.format)
        return expert_bytes(self.config, self.dtype.itemsize)

    @property
    def pages(self) -> int:
        """Bytes in whole pages."""
        return whole_pages(self.nbytes)

    def views(self, buffer: Tensor) -> MLP:
        """Views of a buffer."""
        config, nbytes = self.config, self.nbytes
        if self.format is not None:
            return MLP(*mlp_views(buffer[:nbytes], self.format, config.hidden_size, config.moe_intermediate_size))
        parts = buffer[:nbytes].split(nbytes // 3)
        return MLP(
            *(part.view(self.dtype).view(shape) for part, shape in zip(parts, matrix_shapes(config), strict=True))
        )

    def bytes_of(self, mlp: MLP) -> list[Tensor]:
        """The tensors of an expert that lies so, to be copied: its matrices, or one range of bytes."""
        if self.format is None:
            return list(mlp.tensors)
        data = quantized(mlp.gate_proj).data
        return [data.as_strided((self.nbytes,), (1,))]


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
        self,
        config: ModelConfig,
        device: ComputeDevice,
        dtype: torch.dtype,
        take: Callable[[int, int], MLP],
        format: WeightFormat | None = None,
    ) -> None:
        self._device, self._take = device, take
        self._form = ExpertForm(config, dtype, format)
        self.nbytes_moved = self._form.nbytes

    @property
    def plain(self) -> bool:
        """Whether a fetched expert lies in its buffer as it was published, gate, up and down from the beginning on."""
        return self._form.format is None

    def fetch(self, layer: int, expert: int, buffer: Tensor, after: Event) -> Fetch:
        target, source = self._form.views(buffer), self._take(layer, expert)
        copies = list(zip(self._form.bytes_of(target), self._form.bytes_of(source), strict=True))
        return _PendingCopy(target, self._device, self._device.copy(copies, after))

    def in_host_memory(self, layer: int, expert: int) -> MLP | None:
        mlp, dtype = self._take(layer, expert), self._form.dtype
        if mlp.quantized or mlp.tensors[0].dtype is dtype:
            return mlp
        return MLP(*(part.to(dtype) for part in mlp.tensors))

    def close(self) -> None:
        pass


class HostArena:
    """All routed experts in one piece of host memory, each from a page on, pinned where the system allows it."""

    def __init__(
        self, config: ModelConfig, layers: range, dtype: torch.dtype, format: WeightFormat | None = None
    ) -> None:
        self._config, self._layers = config, layers
        self.form = ExpertForm(config, dtype, format)
        self._step = self.form.pages
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
        return self.form.views(self.buffer(layer, expert))

    def buffer(self, layer: int, expert: int) -> Tensor:
        """The bytes of an expert, in whole pages."""
        start = ((layer - self._layers.start) * self._config.n_routed_experts + expert) * self._step
        return self._memory[start : start + self._step]
