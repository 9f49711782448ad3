"""The processors that this process may use: cores under affinity, classes of speed, a quota of time.

The default number of threads is the number of fast cores, or the quota where that is less. A slow core makes the others
wait: the products' work is divided into equal parts. A thread above the quota is stopped in the middle of its part.
"""

import ctypes
import math
import os
import platform
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dslite.runtime.system import SystemName, system_name
from dslite.runtime.system.control_groups import CpuQuota, cpu_quota

Sysctl = Callable[[str], bytes | None]

# Of the fastest core's capacity or frequency. Turbo steps of equal cores differ by up to 10 %; Intel's efficiency cores
# have about 0.6 of the capacity and 0.75 of the frequency, AMD's dense cores 0.65 of it.
_FAST_SHARE = 0.8


@dataclass(frozen=True)
class Processors:
    """Physical cores that this process may use, how many of them are of the fast class, and a quota of their time."""

    cores: int
    fast: int
    quota: CpuQuota | None = None

    @property
    def threads(self) -> int:
        """How many threads compute best together."""
        most = self.fast if self.quota is None else min(self.fast, math.floor(self.quota.processors))
        return max(1, most)


def sysctl(name: str) -> bytes | None:
    """A value of macOS's sysctlbyname(3) as bytes; None where there is none."""
    try:
        function = ctypes.CDLL(None).sysctlbyname
    except (OSError, TypeError, AttributeError):
        return None
    size = ctypes.c_size_t(0)
    if function(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    value = ctypes.create_string_buffer(size.value)
    if function(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return None
    return value.raw[: size.value]


def cpu_sets() -> bytes:
    """Windows' SYSTEM_CPU_SET_INFORMATION structures, one behind the other; empty where they cannot be read."""
    try:
        kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]  # on Windows only
        function, process = kernel.GetSystemCpuSetInformation, ctypes.c_void_p(kernel.GetCurrentProcess())
    except AttributeError:
        return b""
    size = ctypes.c_ulong(0)
    function(None, 0, ctypes.byref(size), process, 0)
    buffer = ctypes.create_string_buffer(size.value)
    return buffer.raw[: size.value] if function(buffer, size, ctypes.byref(size), process, 0) else b""


def psutil_affinity() -> set[int] | None:
    """The processors that Windows lets this process use; None where that is not known."""
    with suppress(ImportError, AttributeError, OSError):
        import psutil

        return set(psutil.Process().cpu_affinity())
    return None


def processors(
    root: Path = Path("/"),
    *,
    system: SystemName | None = None,
    allowed: Collection[int] | None = None,
    read_sysctl: Sysctl = sysctl,
    read_cpu_sets: Callable[[], bytes] = cpu_sets,
) -> Processors:
    """What this process may use. `allowed` are the logical processors of its affinity; None asks the system."""
    system = system or system_name()
    if system == "linux":
        cores, fast = _linux_cores(root / "sys/devices", allowed)
        return Processors(cores, fast, cpu_quota(root))
    if system == "macos":
        return Processors(*_macos_cores(read_sysctl))
    if system == "windows":
        return Processors(*_windows_cores(read_cpu_sets(), psutil_affinity() if allowed is None else allowed))
    return Processors(os.cpu_count() or 1, os.cpu_count() or 1)


def _linux_cores(devices: Path, allowed: Collection[int] | None) -> tuple[int, int]:
    if allowed is None:
        has_affinity = hasattr(os, "sched_getaffinity")
        allowed = os.sched_getaffinity(0) if has_affinity else range(os.cpu_count() or 1)
    cores = {cpu: _core(devices / f"system/cpu/cpu{cpu}/topology") or f"cpu{cpu}" for cpu in allowed}
    fast = {cores[cpu] for cpu in _fast(devices, allowed)}
    return len(set(cores.values())), len(fast)


def _core(topology: Path) -> str | None:
    """A name of the core of a logical processor, the same for its hyperthreads."""
    for name in ("core_cpus_list", "thread_siblings_list"):
        if text := _text(topology / name):
            return text
    package, core = _text(topology / "physical_package_id"), _text(topology / "core_id")
    return f"{package}/{core}" if package and core else None


def _fast(devices: Path, allowed: Collection[int]) -> Collection[int]:
    """Those of the allowed processors that are of the fastest class; all of them where the classes are not known."""
    if performance := _cpu_list(_text(devices / "cpu_core/cpus")):  # Intel's hybrid processors
        return performance & set(allowed) or allowed
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = {cpu: int(text) for cpu in allowed if (text := _text(devices / f"system/cpu/cpu{cpu}/{name}"))}
        if len(speeds) == len(allowed):
            return [cpu for cpu, speed in speeds.items() if speed >= _FAST_SHARE * max(speeds.values())]
    return allowed


def _cpu_list(text: str | None) -> set[int]:
    """Linux's list of processors: "0-3,8"."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _text(file: Path) -> str | None:
    """A file's text without the line's end; None where there is none."""
    try:
        return file.read_text().strip() or None
    except OSError:
        return None


def _macos_cores(read: Sysctl) -> tuple[int, int]:
    """Level 0 of hw.perflevel is the fastest; Intel's Macs have no levels."""
    cores = _integer(read("hw.physicalcpu")) or os.cpu_count() or 1
    return cores, _integer(read("hw.perflevel0.physicalcpu")) or cores


def _integer(value: bytes | None) -> int:
    return int.from_bytes(value or b"", "little")


def _windows_cores(sets: bytes, allowed: Collection[int] | None) -> tuple[int, int]:
    """Cores and those of the highest EfficiencyClass, which is the fastest.

    SYSTEM_CPU_SET_INFORMATION (winnt.h): Size and Type, 4 bytes each, Id 4, Group 2, LogicalProcessorIndex 1,
    CoreIndex 1, LastLevelCacheIndex 1, NumaNodeIndex 1, EfficiencyClass 1.
    """
    classes: dict[tuple[int, int], int] = {}
    at = 0
    while at + 19 <= len(sets):
        size, kind, _, group, logical, core, _, _, efficiency = struct.unpack_from("<IIIHBBBBB", sets, at)
        if size == 0:
            break
        if kind == 0 and (allowed is None or group > 0 or logical in allowed):
            classes[group, core] = efficiency
        at += size
    if not classes:
        count = len(allowed) if allowed else os.cpu_count() or 1
        return count, count
    return len(classes), sum(efficiency == max(classes.values()) for efficiency in classes.values())


def cpu_name(root: Path = Path("/"), *, system: SystemName | None = None, read_sysctl: Sysctl = sysctl) -> str:
    """What the processor calls itself."""
    system = system or system_name()
    name = None
    if system == "linux":
        name = _cpuinfo(root / "proc/cpuinfo", "model name")
    elif system == "macos":
        name = (read_sysctl("machdep.cpu.brand_string") or b"").rstrip(b"\0").decode(errors="replace")
    return name or platform.processor() or platform.machine()


_LINUX_FEATURES = "avx2 fma avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile asimd bf16 sve i8mm".split()
_MACOS_FEATURES = {
    "avx2": "hw.optional.avx2_0",
    "fma": "hw.optional.fma",
    "avx512f": "hw.optional.avx512f",
    "asimd": "hw.optional.AdvSIMD",
    "bf16": "hw.optional.arm.FEAT_BF16",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
}


def cpu_features(
    root: Path = Path("/"), *, system: SystemName | None = None, read_sysctl: Sysctl = sysctl
) -> list[str]:
    """Those of the features that matter for BF16 and vector arithmetic; empty where they are not known (Windows)."""
    system = system or system_name()
    if system == "linux":
        cpuinfo = root / "proc/cpuinfo"
        flags = set((_cpuinfo(cpuinfo, "flags") or _cpuinfo(cpuinfo, "Features") or "").split())
        return [feature for feature in _LINUX_FEATURES if feature in flags]
    if system == "macos":
        return [feature for feature, key in _MACOS_FEATURES.items() if _integer(read_sysctl(key))]
    return []


def _cpuinfo(cpuinfo: Path, key: str) -> str | None:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)
