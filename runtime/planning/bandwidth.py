"""How fast memory, disk and GPU can be read: measured in seconds and kept, because planning must not take seconds.

A busy machine measures too little, never too much: of several measurements over time the best one counts. A second
measurement is due after a day, further ones at growing distances, and one at once after an answer has read faster than
all of them.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.paths import cache_dir, write_json
from dslite.runtime.system.files import drop_cached_pages, open_descriptor, read_at
from dslite.runtime.system.memory import anonymous_map, host_memory
from dslite.runtime.system.processors import processors

_NAME = "bandwidths.json"
_RUNS = 5
_RAM_BYTES = 1 << 30
_DISK_BYTES = 256 << 20
_GPU_BYTES = 1 << 30
_PCIE_BYTES = 256 << 20
_BLOCK = 4 << 20
_READERS = 4
_KEPT = 5  # measurements of a machine: after so many new ones, a disk that was exchanged for a slower one is seen
_MACHINES = 8  # a home folder may be shared by several; also each affinity and each limit of memory counts as one
_DAY_S = 86_400.0
_MOST_DAYS = 32
_SURPRISE = 1.1  # times the kept bandwidth: an answer that reads faster calls for a new measurement
_SURPRISE_AGE_S = 3600.0
_LOCK_S = 60.0  # another process measures for some seconds
_NOTE_LOCK_S = 0.1  # an answer must not wait for it


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second, read; 0 where there is no such part."""

    ram: float
    disk: float
    pcie: float
    gpu: float


_PARTS = tuple(field.name for field in fields(Bandwidths))


def bandwidths(
    machine: str,
    device: str,
    *,
    refresh: bool = False,
    measure: Callable[[str], Bandwidths] | None = None,
    now: Callable[[], float] = time.time,
) -> Bandwidths:
    """The best of what was measured of this machine; measures where that is due, or with `refresh`.

    Another name of the `machine` is another machine. One process measures at a time; another one waits for its figures.
    """
    asked_at = now()
    record = _Record.read()
    if not refresh and not record.due(machine, asked_at):
        return record.best(machine)
    refreshing = partial(_refreshed, machine, device, refresh, asked_at, measure or measure_all, now)
    try:
        with file_lock(_file(), timeout=_LOCK_S):
            return refreshing()
    except LockTimeoutError:
        return refreshing()  # the worst that comes of it is a second measurement


def _refreshed(
    machine: str,
    device: str,
    refresh: bool,
    asked_at: float,
    measure: Callable[[str], Bandwidths],
    now: Callable[[], float],
) -> Bandwidths:
    """Measure and record, unless another process has measured since `asked_at`."""
    record = _Record.read()
    if not record.due(machine, asked_at) and (not refresh or record.newest(machine) > asked_at):
        return record.best(machine)
    record.add(machine, measure(device), now())
    with suppress(OSError):  # without a record it is measured each time
        write_json(_file(), record.machines)
    return record.best(machine)


def note_read_rate(machine: str, part: str, rate: float, *, now: Callable[[], float] = time.time) -> bool:
    """Compare what an answer read in bytes per second with the kept bandwidth of `ram`, `disk`, `pcie` or `gpu`.

    Where it was clearly faster, the next `bandwidths` measures again; returns whether that is so.
    """
    record = _Record.read()
    kept = record.measurements(machine)
    if not kept or rate <= _SURPRISE * getattr(record.best(machine), part):
        return False
    if now() - record.newest(machine) < _SURPRISE_AGE_S:
        return False  # measured a moment ago: a small model is read from the processor's cache, which is faster
    try:
        with file_lock(_file(), timeout=_NOTE_LOCK_S):
            record = _Record.read()
            record.expire(machine)
            write_json(_file(), record.machines)
    except (OSError, LockTimeoutError):
        return False  # another process measures at this moment, or nothing can be kept
    return True


def _file() -> Path:
    return cache_dir() / _NAME


class _Record:
    """Measurements by machine, oldest first: each a Bandwidths with its time in seconds since 1970."""

    def __init__(self, machines: dict[str, list[dict[str, float]]]) -> None:
        self.machines = machines

    @classmethod
    def read(cls) -> "_Record":
        """What is on record; what is damaged counts as not measured."""
        try:
            raw = json.loads(_file().read_bytes())
        except (OSError, ValueError):
            raw = {}
        machines = raw if isinstance(raw, dict) else {}
        return cls({name: kept for name, listed in machines.items() if (kept := _sound(listed))})

    def measurements(self, machine: str) -> list[dict[str, float]]:
        return self.machines.get(machine, [])

    def best(self, machine: str) -> Bandwidths:
        kept = self.measurements(machine)
        return Bandwidths(**{part: max(each[part] for each in kept) for part in _PARTS})

    def newest(self, machine: str) -> float:
        return max((each["time"] for each in self.measurements(machine)), default=0.0)

    def due(self, machine: str, now: float) -> bool:
        """Whether to measure: never yet, or so long ago that the waits between measurements keep doubling."""
        kept = self.measurements(machine)
        if not kept:
            return True
        days = min(2 ** (len(kept) - 1), _MOST_DAYS)
        age = now - self.newest(machine)
        return age > days * _DAY_S or age < -_DAY_S  # the second: the clock was wrong then, or is now

    def add(self, machine: str, measured: Bandwidths, now: float) -> None:
        kept = [*self.measurements(machine), asdict(measured) | {"time": now}][-_KEPT:]
        others = {name: kept for name, kept in self.machines.items() if name != machine}
        self.machines = dict(list(others.items())[-(_MACHINES - 1) :]) | {machine: kept}

    def expire(self, machine: str) -> None:
        """Keep the figures and forget when they were measured."""
        self.machines[machine] = [each | {"time": 0.0} for each in self.measurements(machine)]


def _sound(listed: Any) -> list[dict[str, float]]:
    """Those of a list of measurements that are complete."""
    found = []
    for each in listed if isinstance(listed, list) else []:
        with suppress(TypeError, KeyError, ValueError):
            found.append({part: float(each[part]) for part in (*_PARTS, "time")})
    return found


def measure_all(device: str) -> Bandwidths:
    """Measure memory, the disk of the weights and, where a GPU computes, its memory and the way there."""
    return Bandwidths(
        ram=measure_ram(),
        disk=measure_disk(_weights_place()),
        pcie=_measure_pcie() if device == "cuda" else 0.0,
        gpu=_measure_gpu(device) if device != "cpu" else 0.0,
    )


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs: the others shared the machine with other programs."""
    times = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_ram() -> float:
    """Bytes per second that all cores together read of host memory, from a gigabyte where there is room for it."""
    import numpy

    count = min(_RAM_BYTES, host_memory().free // 4) // 8
    values = numpy.ones(count, dtype=numpy.uint64)
    parts = numpy.array_split(values, processors().threads)
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
        descriptor, name = tempfile.mkstemp(dir=place, prefix=".dslite-bandwidth-")
    except OSError:
        return 0.0
    try:
        with open(descriptor, "wb") as stream:  # closed before it is read: Windows opens no file twice
            block = os.urandom(_BLOCK)  # not zeros, which some disks do not store
            for _ in range(_DISK_BYTES // _BLOCK):
                stream.write(block)
            stream.flush()
            os.fsync(stream.fileno())
        return _DISK_BYTES / _best(lambda: _read_past_cache(name))
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            os.unlink(name)


def _read_past_cache(file: str) -> None:
    """Read a file with several readers, as experts are read from the disk."""
    descriptor, direct = open_descriptor(Path(file), direct=True)
    if not direct:
        drop_cached_pages(descriptor)

    def read(first: int) -> None:
        # On a page, as direct reads want it, and in huge ones, as slots are: 2.5 GB/s where small ones gave 1.0.
        buffer = memoryview(anonymous_map(_BLOCK))
        for place in range(first * _BLOCK, _DISK_BYTES, _READERS * _BLOCK):
            read_at(descriptor, buffer, place)

    try:
        _in_threads([partial(read, first) for first in range(_READERS)])
    finally:
        os.close(descriptor)


def _weights_place() -> Path:
    """A folder on the disk of the Hugging Face cache that can be written."""
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
    """Bytes per second of a GPU's memory: what a copy inside it reads and writes."""
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
