"""Weights from their files to where they stay: in the order of the files, through a small ring of staging buffers.

While one buffer is copied to the device the next ones are read, so that loading takes as long as the slower of disk and
PCIe, and host memory holds no more than the ring. What the system has in its page cache is copied from there.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dslite.runtime.device import ComputeDevice, Event
from dslite.runtime.planning.footprint import PAGE
from dslite.runtime.weights.checkpoint import TensorEntry
from dslite.runtime.weights.disk import Extents, Reader, Reading

BUFFER_BYTES = 32 * 2**20
BUFFERS = 4


@dataclass
class _Stretch:
    """Neighbouring bytes of a file that fit into a buffer, and the tensors, or parts of such, that they are."""

    file: Path
    start: int  # byte of the file
    end: int
    parts: list[tuple[Tensor, TensorEntry, int]] = field(default_factory=list)  # flat target, entry, byte of the file

    @property
    def first_page(self) -> int:
        return self.start // PAGE * PAGE

    def copies(self, buffer: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Targets, and the views of a buffer that hold the stretch's whole pages."""
        pairs = []
        for target, entry, place in self.parts:
            count = target.numel() * entry.dtype.itemsize
            pairs.append((target, buffer[place - self.first_page :][:count].view(entry.dtype)))
        return pairs


class Staging:
    """Collects tensors that are wanted somewhere, allocated already, and then brings them there."""

    def __init__(self, reader: Reader, device: ComputeDevice, report: Callable[[int], None]) -> None:
        """`report` is told of bytes that are on their way to their place."""
        self._reader, self._device, self._report = reader, device, report
        self._wanted: list[tuple[TensorEntry, Tensor]] = []

    def add(self, entry: TensorEntry, target: Tensor) -> None:
        """The tensor of an entry belongs into `target`: contiguous, of its shape, of any dtype, on host or device."""
        self._wanted.append((entry, target.view(-1)))

    def run(self) -> None:
        """Bring all that is wanted. Raises CheckpointError."""
        stretches = list(_stretches(self._wanted))
        self._wanted = []
        ring = [self._device.staging(BUFFER_BYTES) for _ in range(min(BUFFERS, len(stretches)))]
        copied: list[Event] = [None] * len(ring)
        coming: deque[Reading] = deque()
        before = self._device.mark()  # memory of the targets may have been another's, who is still computed
        begun = 0
        for number, stretch in enumerate(stretches):
            while begun < min(number + len(ring), len(stretches)):
                self._device.reach(copied[begun % len(ring)])  # before its buffer is written again
                coming.append(self._read(stretches[begun], ring[begun % len(ring)]))
                begun += 1
            coming.popleft().wait()
            copied[number % len(ring)] = self._device.copy(stretch.copies(ring[number % len(ring)]), before)
            self._report(stretch.end - stretch.start)
        for event in copied:
            self._device.reach(event)

    def _read(self, stretch: _Stretch, buffer: Tensor) -> Reading:
        extents = Extents.between(self._reader.files[stretch.file], stretch.start, stretch.end)
        return Reading(extents, self._reader.read(extents, buffer, from_cache=True))


def _stretches(wanted: list[tuple[TensorEntry, Tensor]]) -> Iterator[_Stretch]:
    """What is wanted, in the order of the files, a tensor that does not fit into a buffer in parts."""
    now: _Stretch | None = None
    for entry, target in sorted(wanted, key=lambda pair: (str(pair[0].file), pair[0].offset)):
        place, end = entry.offset, entry.offset + entry.nbytes
        while place < end:
            if now is None or (now.file, now.end) != (entry.file, place) or place >= now.first_page + BUFFER_BYTES:
                if now is not None:
                    yield now
                now = _Stretch(entry.file, place, place)
            # A buffer ends with a page of the file, and no value of a tensor lies across that.
            now.end = min(end, now.first_page + BUFFER_BYTES)
            size = entry.dtype.itemsize
            first, last = (place - entry.offset) // size, (now.end - entry.offset) // size
            now.parts.append((target[first:last], entry, place))
            place = now.end
    if now is not None:
        yield now
