"""Experts read from safetensors files into slots by large parallel positional reads that bypass the page cache.

Page faults bring 4 KB at a time and keep a second copy in the page cache. Unbuffered reads (O_DIRECT) do neither, but
begin and end on page boundaries of the file: a buffer holds the pages around an extent, and the matrices are views that
begin inside them. Where a file system refuses unbuffered reads, the pages read are dropped from the cache again.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from dslite.model.moe import MLP
from dslite.runtime.device import Event, anonymous_memory
from dslite.runtime.errors import CheckpointError
from dslite.runtime.system.files import drop_cached_pages, read_at
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.packed_layout import PAGE, whole_pages
from dslite.runtime.weights.page_cache import PageCache
from dslite.runtime.weights.safetensors_file import TensorEntry
from dslite.runtime.weights.sources import ExpertForm, Fetch, expert_entries
from dslite.runtime.weights.watched_file import REMEDY, WatchedFile

READ_BYTES = 2 * 2**20  # of one call: a huge page, of which the block layer makes few requests
THREADS = 4  # reads in flight
PACK_AGAIN = "check the disk; remove the packed weights with `dslite model rm`, and pack again with `dslite model pack`"


class WeightFile(WatchedFile):
    """A file whose reads bypass the page cache."""

    def __init__(self, path: Path, size: int, checksums: Mapping[int, tuple[int, int]] | None = None) -> None:
        """`size` is what the file's header says; for `checksums` see Checkpoint. Raises CheckpointError."""
        super().__init__(path, size, direct=True)
        self._checksums = checksums or {}

    @cached_property
    def page_cache(self) -> PageCache | None:
        return PageCache.of(self.fd)

    def read(self, target: memoryview, start: int, least: int, *, from_cache: bool = False) -> None:
        """Read from byte `start`, a page's first, into whole pages; `least` bytes must come. Raises CheckpointError.

        `from_cache`: a range that is wholly in the page cache is copied from there.
        """
        cached = self.page_cache if from_cache else None
        if cached is not None and not cached.holds(start, least):
            cached = None
        fd = self.fd if cached is None else cached.fd
        done = 0
        while done < least:
            try:
                count = read_at(fd, target[done:], start + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path} cannot be read at byte {start + done}: {error.strerror}", REMEDY
                ) from None
            if count <= 0 or (done + count < least and count % PAGE):
                raise CheckpointError(f"{self.path} ends at byte {start + done + max(count, 0)}, too early", REMEDY)
            done += count
        if not self.direct and cached is None:
            drop_cached_pages(self.fd, start, len(target))
        length, checksum = self._checksums.get(start, (0, 0))
        if length == least and zlib.crc32(target[:least]) != checksum:
            raise damaged(self.path, start)


def damaged(path: Path, start: int) -> CheckpointError:
    """The error for a block whose checksum is another."""
    return CheckpointError(f"{path} is damaged: the block at byte {start} has another checksum", PACK_AGAIN)


@dataclass(frozen=True)
class _PageRange:
    """Neighbouring tensors of a file, and the whole pages that hold them, at `place` of a buffer."""

    file: WeightFile
    first_page: int  # byte of the file
    end: int  # byte of the file behind the last tensor
    place: int

    @property
    def span(self) -> int:
        return whole_pages(self.end - self.first_page)


@dataclass(frozen=True)
class Extents:
    """The ranges of some tensors in their files, and their `places` in a buffer, in the order of the tensors."""

    runs: tuple[_PageRange, ...]
    places: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of a buffer that holds them."""
        return sum(run.span for run in self.runs)

    @classmethod
    def between(cls, file: WeightFile, start: int, end: int) -> "Extents":
        """A range of a file, whole pages, for the beginning of a buffer."""
        return cls((_PageRange(file, start // PAGE * PAGE, end, 0),), ())

    @classmethod
    def of(cls, entries: Sequence[TensorEntry], files: dict[Path, WeightFile]) -> "Extents":
        """Adjacent tensors become one run."""
        places = [0] * len(entries)
        runs: list[_PageRange] = []
        order = sorted(range(len(entries)), key=lambda number: (str(entries[number].file), entries[number].offset))
        for number in order:
            entry = entries[number]
            end = entry.offset + entry.nbytes
            last = runs[-1] if runs else None
            if last is not None and (last.file.path, last.end) == (entry.file, entry.offset):
                runs[-1] = _PageRange(last.file, last.first_page, end, last.place)
            else:
                place = last.place + last.span if last is not None else 0
                runs.append(_PageRange(files[entry.file], entry.offset // PAGE * PAGE, end, place))
            places[number] = runs[-1].place + entry.offset - runs[-1].first_page
        return cls(tuple(runs), tuple(places))


class Reader:
    """A pool of reading threads; reads begin in the order of the calls."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.files = {
            path: WeightFile(path, size, checkpoint.block_checksums(path)) for path, size in checkpoint.sizes.items()
        }
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="dslite-read")

    def read(self, extents: Extents, buffer: Tensor, *, from_cache: bool = False) -> list["Future[None]"]:
        """Begin to read into a buffer that is aligned to pages."""
        view = memoryview(buffer.numpy())  # type: ignore[arg-type]  # numpy is generic about it
        return [
            self._threads.submit(
                partial(run.file.read, from_cache=from_cache),
                view[at : min(at + READ_BYTES, run.place + run.span)],
                start,
                least,
            )
            for run in extents.runs
            for at, start, least in _pieces(run)
        ]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for file in self.files.values():
            file.close()


def _pieces(run: _PageRange) -> Iterable[tuple[int, int, int]]:
    """Place in the buffer, byte of the file, and bytes that must come, of each call."""
    for done in range(0, run.span, READ_BYTES):
        start = run.first_page + done
        yield run.place + done, start, min(READ_BYTES, run.end - start)


@dataclass
class Reading:
    """Reads of extents into a buffer. An error of a reading thread is raised by `wait`."""

    extents: Extents
    futures: list["Future[None]"]

    def wait(self) -> None:
        wait(self.futures)  # all of them, even if one has failed: the buffer will be used again
        for future in self.futures:
            future.result()
        for run in self.extents.runs:
            run.file.check()

    def passed(self) -> bool:
        return all(future.done() for future in self.futures)


@dataclass
class _ReadingExpert:
    mlp: MLP
    reading: Reading
    raw: MLP | None = field(default=None)  # in the file's dtype, where that is another

    def wait(self) -> None:
        self.reading.wait()
        if self.raw is not None:
            for target, source in zip(self.mlp.tensors, self.raw.tensors, strict=True):
                target.copy_(source)
            self.raw = None

    def passed(self) -> bool:
        return self.reading.passed()


class DiskSource:
    """Experts in the files of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, reader: Reader, dtype: torch.dtype) -> None:
        self._checkpoint, self._reader, self._dtype = checkpoint, reader, dtype
        self._form = ExpertForm.of(checkpoint, dtype)
        self.nbytes_moved = self._form.nbytes
        self._extents: dict[tuple[int, int], Extents] = {}

    def fetch(self, layer: int, expert: int, buffer: Tensor, after: Event) -> Fetch:
        names = expert_entries(layer, expert, quantized=self._form.format is not None)
        entries = [self._checkpoint.entries[name] for name in names]
        key = (layer, expert)
        if key not in self._extents:
            self._extents[key] = Extents.of(entries, self._reader.files)
        extents = self._extents[key]
        if self._form.format is not None:
            return _ReadingExpert(self._form.views(buffer), Reading(extents, self._reader.read(extents, buffer)))
        if entries[0].dtype is self._dtype:
            return _ReadingExpert(views(buffer, extents, entries), Reading(extents, self._reader.read(extents, buffer)))
        scratch = anonymous_memory(extents.nbytes)
        reading = Reading(extents, self._reader.read(extents, scratch))
        return _ReadingExpert(self._form.views(buffer), reading, views(scratch, extents, entries))

    def in_host_memory(self, layer: int, expert: int) -> MLP | None:
        return None

    def close(self) -> None:
        self._reader.close()


def views(buffer: Tensor, extents: Extents, entries: Sequence[TensorEntry]) -> MLP:
    """gate, up and down in a buffer that holds their extents."""
    return MLP(
        *(
            buffer[place : place + entry.nbytes].view(entry.dtype).view(entry.shape)
            for place, entry in zip(extents.places, entries, strict=True)
        )
    )
