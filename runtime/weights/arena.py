"""A preallocated arena of expert-sized buffers on the compute device."""

from torch import Tensor

from dslite.runtime.device import ComputeDevice


class Arena:
    """Buffers of equal size, by number, in blocks whose memory can be freed one by one."""

    def __init__(self, device: ComputeDevice, buffer_bytes: int) -> None:
        self._device = device
        self._buffer_bytes = buffer_bytes
        self._blocks: dict[int, Tensor] = {}  # by the number of their first buffer
        self._place: dict[int, tuple[int, int]] = {}  # buffer → first buffer of its block, place in it
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated."""
        return sum(block.nbytes for block in self._blocks.values())

    @property
    def buffers(self) -> list[int]:
        """The numbers of all buffers."""
        return list(self._place)

    def grow(self, count: int) -> list[int]:
        """Allocate a block of `count` buffers; return their numbers. Raises what `is_out_of_memory` knows."""
        first = self._next
        self._blocks[first] = self._device.allocate(count * self._buffer_bytes)
        self._next += count
        self._place |= {number: (first, number - first) for number in range(first, self._next)}
        return list(range(first, self._next))

    def buffer(self, number: int) -> Tensor:
        """The bytes of a buffer."""
        first, place = self._place[number]
        return self._blocks[first][place * self._buffer_bytes : (place + 1) * self._buffer_bytes]

    def newest_block(self) -> list[int]:
        """The buffers of the block that was allocated last; none where only one block is left."""
        if len(self._blocks) < 2:
            return []
        newest = max(self._blocks)
        return [number for number, (first, _) in self._place.items() if first == newest]

    def drop(self, numbers: list[int]) -> None:
        """Free a whole block, which no kernel may still read."""
        del self._blocks[min(numbers)]
        for number in numbers:
            del self._place[number]
