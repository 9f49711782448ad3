"""The routed experts of a layer in one block of memory that a GPU's allocator does not round up one by one."""

from collections.abc import Callable

from torch import Tensor

from dslite.runtime.planning.footprint import is_routed

_ALIGNMENT = 256  # bytes: kernels read sixteen at once


class ExpertBlocks:
    """Allocates parameters in the order in which they are taken, the experts of a layer in one block."""

    def __init__(self, experts: int, parts: int, part: int, allocate: Callable[[int], Tensor]) -> None:
        """An expert has so many parts, of `part` bytes each. `allocate` gives so many bytes."""
        self._bytes = parts * experts * _rounded(part)
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
