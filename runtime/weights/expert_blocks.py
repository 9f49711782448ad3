"""The routed experts of a layer in one block of memory that a GPU's allocator does not round up one by one."""

from collections.abc import Callable

from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.runtime.planning.footprint import is_routed

_ALIGNMENT = 256  # bytes: kernels read sixteen at once


class ExpertBlocks:
    """Allocates parameters in the order in which they are taken, the experts of a layer in one block."""

    def __init__(self, config: ModelConfig, itemsize: int, allocate: Callable[[int], Tensor]) -> None:
        """`allocate` gives so many bytes."""
        matrix = config.hidden_size * config.moe_intermediate_size * itemsize
        self._bytes = 3 * config.n_routed_experts * _rounded(matrix)
        self._allocate = allocate
        self._blocks: dict[str, tuple[Tensor, int]] = {}  # layer → its block, and how much of it is used

    def allocate(self, name: str, nbytes: int) -> Tensor:
        """Bytes for the parameter of a Hub name."""
        if not is_routed(name):
            return self._allocate(nbytes)
        layer = name.partition(".mlp.")[0]
        if layer not in self._blocks:
            self._blocks[layer] = self._allocate(self._bytes), 0
        block, used = self._blocks[layer]
        self._blocks[layer] = block, used + _rounded(nbytes)
        return block[used : used + nbytes]


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
