"""Loads weights from their files to their final memory, in the order of the files, through a ring of staging buffers.

While one buffer is copied to the device the next ones are read, so that loading takes as long as the slower of disk and
PCIe, and needs no more host memory than the ring. Ranges in the page cache are copied from there.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dslite.runtime.device import ComputeDevice, Event
from dslite.runtime.weights.disk import Extents, Reader, Reading
from dslite.runtime.weights.packed_layout import PAGE
from dslite.runtime.weights.safetensors_file import TensorEntry

BUFFER_BYTES = 32 * 2**20
BUFFERS = 4


@dataclass
class _FileRange:
    """Neighbouring bytes of a file that fit into a buffer, and the tensors or parts of tensors that they hold."""

    file: Path
    start: int  # byte of the file
    end: int
    parts: list[tuple[Tensor, TensorEntry, int]] = field(default_factory=list)  # flat target, entry, byte of the file

    @property
    def first_page(self) -> int:
        return self.start // PAGE * PAGE

    def copies(self, buffer: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Targets, and their views of a buffer that holds the whole pages of the range."""
        pairs = []
        for target, entry, place in self.parts:
            count = target.numel() * entry.dtype.itemsize
            pairs.append((target, buffer[place - self.first_page :][:count].view(entry.dtype)))
        return pairs


class Staging:
    """Collects tensors and their allocated targets, then loads them all."""

    def __init__(self, reader: Reader, device: ComputeDevice, report: Callable[[int], None]) -> None:
        """`report` gets the bytes of each range whose copy has begun."""
        self._reader, self._device, self._report = reader, device, report
        self._targets: list[tuple[TensorEntry, Tensor]] = []

    def add(self, entry: TensorEntry, target: Tensor) -> None:
        """Load an entry into `target`: contiguous, of its shape, of any dtype, on host or device."""
        self._targets.append((entry, target.view(-1)))

    def run(self) -> None:
        """Load everything. Raises CheckpointError."""
        ranges = list(_ranges(self._targets))
        self._targets = []
        ring = [self._device.staging(BUFFER_BYTES) for _ in range(min(BUFFERS, len(ranges)))]
        copied: list[Event] = [None] * len(ring)
        reading: deque[Reading] = deque()
        before = self._device.mark()  # kernels may still read what the memory of the targets held before
        begun = 0
        for number, piece in enumerate(ranges):
            while begun < min(number + len(ring), len(ranges)):
                self._device.reach(copied[begun % len(ring)])  # before its buffer is written again
                reading.append(self._read(ranges[begun], ring[begun % len(ring)]))
                begun += 1
            reading.popleft().wait()
            copied[number % len(ring)] = self._device.copy(piece.copies(ring[number % len(ring)]), before)
            self._report(piece.end - piece.start)
        for event in copied:
            self._device.reach(event)

    def _read(self, piece: _FileRange, buffer: Tensor) -> Reading:
        extents = Extents.between(self._reader.files[piece.file], piece.start, piece.end)
        return Reading(extents, self._reader.read(extents, buffer, from_cache=True))


def _ranges(targets: list[tuple[TensorEntry, Tensor]]) -> Iterator[_FileRange]:
    """Ranges in the order of the files; a tensor that does not fit into a buffer comes in parts."""
    now: _FileRange | None = None
    for entry, target in sorted(targets, key=lambda pair: (str(pair[0].file), pair[0].offset)):
        place, end = entry.offset, entry.offset + entry.nbytes
        while place < end:
            if now is None or (now.file, now.end) != (entry.file, place) or place >= now.first_page + BUFFER_BYTES:
                if now is not None:
                    yield now
                now = _FileRange(entry.file, place, place)
            # A buffer ends with a page of the file, and no value of a tensor lies across that.
            now.end = min(end, now.first_page + BUFFER_BYTES)
            size = entry.dtype.itemsize
            first, last = (place - entry.offset) // size, (now.end - entry.offset) // size
            now.parts.append((target[first:last], entry, place))
            place = now.end
    if now is not None:
        yield now
