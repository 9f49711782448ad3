"""How fast memory, disk and GPU can be read: measured once and kept, because planning must not take seconds."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from dslite.runtime.paths import cache_dir, write_json

_NAME = "bandwidths.json"
_RUNS = 5
_RAM_BYTES = 1 << 30
_DISK_BYTES = 256 << 20
_GPU_BYTES = 1 << 30
_PCIE_BYTES = 256 << 20
_BLOCK = 4 << 20
_READERS = 4


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second, read; 0 where there is no such part."""

    ram: float
    disk: float
    pcie: float
    gpu: float


def bandwidths(machine: str, device: str, *, refresh: bool = False) -> Bandwidths:
    """What was measured of this machine, or is now. Another name of the `machine` is another machine."""
    file = cache_dir() / _NAME
    if not refresh and (kept := _read(file, machine)):
        return kept
    measured = Bandwidths(
        ram=measure_ram(),
        disk=measure_disk(_weights_place()),
        pcie=_measure_pcie() if device == "cuda" else 0.0,
        gpu=_measure_gpu(device) if device != "cpu" else 0.0,
    )
    with suppress(OSError):  # where it cannot be kept it is measured each time
        write_json(file, {"machine": machine} | asdict(measured))
    return measured


def _read(file: Path, machine: str) -> Bandwidths | None:
    try:
        raw = json.loads(file.read_bytes())
        return (
            Bandwidths(*(float(raw[name]) for name in ("ram", "disk", "pcie", "gpu")))
            if raw["machine"] == machine
            else None
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs: the others shared the machine."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_ram() -> float:
    """Bytes per second that all cores together read of ordinary memory, of a gigabyte where there is room for it."""
    import numpy

    from dslite.runtime.planning.hardware import memory, physical_cores

    count = min(_RAM_BYTES, memory()[1] // 4) // 8
    values = numpy.ones(count, dtype=numpy.uint64)
    parts = numpy.array_split(values, physical_cores())
    # Summing 64-bit integers is the plain loop that reads fastest: 30 GB/s where a sum of floats reads 10.
    return values.nbytes / _best(lambda: _in_threads([part.sum for part in parts]))


def _in_threads(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_disk(place: Path) -> float:
    """Bytes per second of large reads from a folder's disk, past the page cache; 0 where nothing can be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".dslite-bandwidth-") as stream:
            block = os.urandom(_BLOCK)  # not zeros, which some disks do not store
            for _ in range(_DISK_BYTES // _BLOCK):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
            return _DISK_BYTES / _best(lambda: _read_past_cache(stream.name))
    except OSError:
        return 0.0


def _read_past_cache(file: str) -> None:
    """Read a file with several readers, as experts are read from the disk."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):  # a file system, or a system, without direct reads
        descriptor = os.open(file, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    from dslite.runtime.device import anonymous_memory

    def read(first: int) -> None:
        # On a page, as direct reads want it, and in huge ones, as slots are: 2.5 GB/s where small ones gave 1.0.
        buffer = memoryview(anonymous_memory(_BLOCK).numpy())  # type: ignore[arg-type]  # numpy is generic about it
        for place in range(first * _BLOCK, _DISK_BYTES, _READERS * _BLOCK):
            os.preadv(descriptor, [buffer], place)

    try:
        _in_threads([partial(read, first) for first in range(_READERS)])
    finally:
        os.close(descriptor)


def _weights_place() -> Path:
    """The disk that matters: the Hugging Face cache's, or the part of its path that is there."""
    from dslite.runtime.downloads.hub import cache_root

    place = cache_root()
    while not place.is_dir() or not os.access(place, os.W_OK):
        if place == place.parent:
            return cache_dir()
        place = place.parent
    return place


def _measure_pcie() -> float:
    """Bytes per second from page-locked host memory to the GPU."""
    import torch

    host = torch.ones(_PCIE_BYTES, dtype=torch.uint8).pin_memory()
    there = torch.empty(_PCIE_BYTES, dtype=torch.uint8, device="cuda")

    def copy() -> None:
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()

    return _PCIE_BYTES / _best(copy)


def _measure_gpu(device: str) -> float:
    """Bytes per second that a GPU's memory gives: what a copy inside it reads and writes."""
    import torch

    free = torch.cuda.mem_get_info()[0] if device == "cuda" else _GPU_BYTES * 8
    count = min(_GPU_BYTES, free // 8)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    wait = torch.cuda.synchronize if device == "cuda" else torch.mps.synchronize

    def copy() -> None:
        target.copy_(source)
        wait()

    return 2 * count / _best(copy)
