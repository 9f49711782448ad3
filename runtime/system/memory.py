"""Host memory: how much there is, how much may be taken, and what this process has used.

Linux is read from /proc and the control groups, which psutil does not know. On macOS and Windows psutil is used: their
calls need structures of C that could not be tried here, and psutil is tried by many.
"""

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dslite.runtime.system import SystemName, system_name
from dslite.runtime.system.control_groups import MemoryLimit, memory_limits

PAGE_SIZE = mmap.PAGESIZE  # bytes: 4096 on x86, 16384 on Apple's processors


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory, those that may still be taken, and the limits that were found. `limits` may be empty."""

    total: int
    free: int
    limits: tuple[MemoryLimit, ...] = ()


def psutil_memory() -> tuple[int, int]:
    """Total and available bytes as psutil reads them. Raises ImportError without psutil."""
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def host_memory(
    root: Path = Path("/"),
    *,
    system: SystemName | None = None,
    reader: Callable[[], tuple[int, int]] = psutil_memory,
) -> HostMemory:
    """Host memory: the system's, or what a control group allows where that is less."""
    total, free = _system_memory(root, system or system_name(), reader)
    limits = tuple(limit for limit in memory_limits(root) if limit.limit < total) if _is_linux(system) else ()
    return HostMemory(
        total=min([total, *(limit.limit for limit in limits)]),
        free=min([free, *(limit.free for limit in limits)]),
        limits=limits,
    )


def _is_linux(system: SystemName | None) -> bool:
    return (system or system_name()) == "linux"


def _system_memory(root: Path, system: SystemName, reader: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    if system == "linux":
        try:
            return _meminfo(root / "proc/meminfo")
        except (OSError, KeyError, ValueError):
            pass
    try:
        return reader()
    except ImportError:
        total = _total_of_sysconf()
        return total, total // 2  # what is in use is not known here


def _meminfo(file: Path) -> tuple[int, int]:
    """Total and available bytes of /proc/meminfo. Raises OSError, KeyError, ValueError."""
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    values = {name: int(text.split()[0]) * 1024 for name, text in fields.items() if text.strip()}
    available = values.get("MemAvailable")
    if available is None:  # before Linux 3.14
        available = values["MemFree"] + values["Cached"] + values["Buffers"]
    return values["MemTotal"], available


def _total_of_sysconf() -> int:
    if not hasattr(os, "sysconf"):
        return 8 << 30  # neither psutil nor sysconf: a small machine, so that nothing is taken that is not there
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_rss(system: SystemName | None = None) -> int:
    """The most host memory that this process has had resident, in bytes; 0 where the system does not say."""
    system = system or system_name()
    try:
        import resource
    except ImportError:
        return _peak_of_psutil()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if system == "macos" else peak * 1024


def _peak_of_psutil() -> int:
    try:
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    except ImportError:
        return 0


def anonymous_map(nbytes: int, *, huge: bool = True) -> mmap.mmap:
    """Private memory in whole pages, `huge` ones where the system has them. Untouched pages cost nothing.

    Raises OSError where there is not so much.
    """
    private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    # Shared memory, which is what Python maps by default, gets no huge pages.
    memory = mmap.mmap(-1, max(nbytes, 1), flags=private) if private else mmap.mmap(-1, max(nbytes, 1))
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel that was built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
