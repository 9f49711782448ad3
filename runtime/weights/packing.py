"""Packs a model: quantizes its published weights into one file, piece by piece, and can go on where it was ended.

Pieces are written at their places into a file that has all its bytes from the start. A journal beside it has the
checksums of what has reached the disk; it is written behind a flush, every gigabyte. At the end the file gets its name.
"""

import json
import os
import shutil
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag

import torch
from torch import Tensor

from dslite.model.quantized_layout import Weights
from dslite.runtime.cache.disk_cache import file_identity
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.downloads.layout import CONFIG, INDEX, NEEDED, OPTIONAL, files_of
from dslite.runtime.downloads.packed import PACKED, packed_folder, packed_root, write_note
from dslite.runtime.errors import DsliteError
from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.system.files import free_disk_bytes, replace, write_at
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.packed_layout import PAGE, pieces
from dslite.runtime.weights.quantized_checkpoint import (
    BLOCK_BYTES,
    CHECKSUMS,
    VERSION,
    PackedLayout,
    quantize_piece,
)
from dslite.runtime.weights.safetensors_file import header_bytes, tensor_bytes

PART = PACKED + ".part"
JOURNAL = PACKED + ".journal"
_FLUSH_BYTES = 2**30
_MAPPED_BYTES = 2**27  # written before pages of the sources, two to four times as many, are given back
_WORKERS = 2  # each holds one piece and its sources' pages
_LOCK_S = 0.2


@dataclass(frozen=True)
class PackingJob:
    """What packing needs: `nbytes` of the file, `missing` of them not written yet, `free` on the disk of `folder`."""

    ref: ModelRef
    source: Checkpoint
    weights: Weights
    folder: Path
    nbytes: int
    missing: int
    free: int

    @classmethod
    def of(cls, ref: ModelRef, source: Path, weights: Weights) -> "PackingJob":
        """Raises CheckpointError."""
        checkpoint = Checkpoint.open(source)
        folder = packed_folder(ref, weights)
        nbytes = _layout(checkpoint, weights).nbytes
        try:
            written = (folder / PART).stat()
            there = min(getattr(written, "st_blocks", 0) * 512, nbytes)
        except OSError:
            there = 0
        return cls(ref, checkpoint, weights, folder, nbytes, nbytes - there, free_disk_bytes(folder))

    def check_room(self) -> None:
        """Raise DsliteError where the disk has too little room."""
        if self.missing > self.free:
            raise DsliteError(
                f"the packed weights need {self.missing / 1e9:.1f} GB in {self.folder}, and {self.free / 1e9:.1f} GB "
                "are free",
                "free some room, set DSLITE_CACHE_DIR to a folder on another disk, or use --no-pack",
            )

    def run(self, report: Callable[[int, int], None] = lambda *_: None, cancel: Flag | None = None) -> Path | None:
        """Pack; the folder, or None where it was cancelled: what is written is kept.

        `report` gets the bytes that are done and all of them. Raises DsliteError.
        """
        self.check_room()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for private in (packed_root(), self.folder.parent, self.folder):
                private.chmod(0o700)
            with file_lock(self.folder / PACKED, timeout=_LOCK_S):
                return self.folder if _Writer(self, report, cancel or Flag()).run() else None
        except LockTimeoutError:
            raise DsliteError(
                f"another process is packing {self.ref.name} as {self.weights}", "wait until it has ended"
            ) from None
        except OSError as error:
            raise DsliteError(
                f"the weights could not be packed in {self.folder}: {error.strerror}",
                "free some room or check the folder; what is written is kept, and the same command goes on from there",
            ) from None


def source_identity(folder: Path) -> str:
    """Identifies the published weights of a folder: config, names, and hash or size, date and samples of each file."""
    digest = {name: file_identity(folder / name).hex() for name in files_of(folder) if name not in (*NEEDED, *OPTIONAL)}
    digest[CONFIG] = str(zlib.crc32((folder / CONFIG).read_bytes()))
    return json.dumps(digest, sort_keys=True)


def _layout(source: Checkpoint, weights: Weights) -> PackedLayout:
    return PackedLayout.of(source.config, weights, {name: entry.dtype for name, entry in source.entries.items()})


class _Writer:
    def __init__(self, job: PackingJob, report: Callable[[int, int], None], cancel: Flag) -> None:
        self._job, self._report, self._cancel = job, report, cancel
        self._layout = _layout(job.source, job.weights)
        self._pieces = pieces(job.source.config, job.weights)
        metadata = {"version": VERSION, "weights": job.weights, "source": source_identity(job.source.folder)}
        self._header = header_bytes(self._layout.forms, metadata, PAGE)
        self._sums: dict[str, list[int]] = {}  # tensor → checksums of its blocks
        self._done = 0

    def run(self) -> bool:
        folder = self._job.folder
        write_note(folder, self._job.ref, self._job.weights)
        part, journal = folder / PART, folder / JOURNAL
        self._resume(part, journal)
        with part.open("r+b") as stream, journal.open("ab") as notes:
            stream.truncate(len(self._header) + self._layout.nbytes)
            if not self._write_tensors(stream.fileno(), notes.fileno()):
                return False
            self._write_checksums(stream.fileno())
            os.fsync(stream.fileno())
        for name in (*NEEDED, *OPTIONAL):
            if name != INDEX and (self._job.source.folder / name).is_file():
                shutil.copyfile(self._job.source.folder / name, folder / name)
        replace(part, folder / PACKED)
        journal.unlink()
        return True

    def _resume(self, part: Path, journal: Path) -> None:
        """Take up what an earlier run has written of the same sources; else begin anew."""
        try:
            with part.open("rb") as stream:
                same = stream.read(len(self._header)) == self._header
            lines = journal.read_bytes().splitlines(keepends=True) if same else []
        except FileNotFoundError:
            same, lines = False, []
        if not same:
            journal.unlink(missing_ok=True)
            part.write_bytes(self._header)
            return
        for line in lines:
            if line.endswith(b"\n"):  # the last one may be cut
                name, sums = json.loads(line)
                self._sums[name] = sums
        journal.write_bytes(b"".join(line for line in lines if line.endswith(b"\n")))

    def _places(self) -> Iterator[tuple[str, int, int]]:
        """Tensor, its first byte in the file, its bytes."""
        place = len(self._header)
        for name, form in self._layout.forms.items():
            yield name, place, form.nbytes
            place += form.nbytes

    def _write_tensors(self, file: int, notes: int) -> bool:
        todo = [found for found in self._places() if found[0] not in self._sums and found[0] != CHECKSUMS]
        self._done = self._layout.nbytes - sum(nbytes for _, _, nbytes in todo)
        self._report(self._done, self._layout.nbytes)
        running: deque[tuple[str, int, Future[list[int]]]] = deque()
        waiting: dict[str, list[int]] = {}  # written, not yet flushed
        unflushed = mapped = 0
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="dslite-pack") as pool:
            try:
                for name, place, nbytes in [*todo, ("", 0, 0)]:
                    if name and not self._cancel.is_set():
                        running.append((name, nbytes, pool.submit(self._write_tensor, file, name, place)))
                    while running and (len(running) > 2 * _WORKERS or not name):
                        written, count, future = running.popleft()
                        waiting[written] = future.result()
                        unflushed += count
                        self._done += count
                        self._report(self._done, self._layout.nbytes)
                    if unflushed >= _FLUSH_BYTES or not name:
                        self._flush(file, notes, waiting)
                        waiting, unflushed = {}, 0
                    if (mapped := mapped + nbytes) >= _MAPPED_BYTES:
                        self._job.source.unmap()
                        mapped = 0
            finally:
                for _, _, future in running:
                    future.cancel()
        return len(self._sums) == len(self._layout.forms) - 1

    def _write_tensor(self, file: int, name: str, place: int) -> list[int]:
        data = self._bytes(name)
        view = tensor_bytes(data)
        sums = []
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            sums.append(zlib.crc32(block))
            write_at(file, block, place + start)
        return sums

    def _bytes(self, name: str) -> Tensor:
        piece = self._pieces.get(name)
        if piece is None:
            return self._job.source.tensor(name)
        data = torch.empty(piece.file_bytes, dtype=torch.uint8)
        quantize_piece(self._job.source, piece, data)
        return data

    def _flush(self, file: int, notes: int, written: dict[str, list[int]]) -> None:
        """What the journal names is on the disk."""
        os.fsync(file)
        for name, sums in written.items():
            os.write(notes, json.dumps([name, sums]).encode() + b"\n")
        os.fsync(notes)
        self._sums |= written

    def _write_checksums(self, file: int) -> None:
        sums = [zlib.crc32(self._header)]
        for name in self._layout.forms:
            sums += self._sums.get(name, [])
        place = next(place for name, place, _ in self._places() if name == CHECKSUMS)
        write_at(file, memoryview(b"".join(number.to_bytes(4, "little") for number in sums)), place)
