"""What this machine has: processors, memory, and how fast it can be read."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class MachineSpec:
    """A machine as the planner sees it: this one, measured, or a described one.

    Memory in bytes, bandwidths in bytes per second; 0 where there is no such part.
    """

    device: str  # cuda, mps or cpu
    device_name: str
    vram_total: int
    vram_free: int
    ram_total: int
    ram_free: int
    gpu_bandwidth: float
    pcie_bandwidth: float
    ram_bandwidth: float
    disk_bandwidth: float
    cores: int  # physical


def machine(*, refresh: bool = False) -> MachineSpec:
    """This machine with its best device. Bandwidths are measured the first time, in seconds, and kept."""
    from dslite.runtime.planning.bandwidth import bandwidths

    spec = unmeasured()
    key = f"{cpu_name()} | {spec.ram_total >> 30} GiB | {spec.device_name}"
    speeds = bandwidths(key, spec.device, refresh=refresh)
    return replace(
        spec,
        gpu_bandwidth=speeds.gpu,
        pcie_bandwidth=speeds.pcie,
        ram_bandwidth=speeds.ram,
        disk_bandwidth=speeds.disk,
    )


def unmeasured() -> MachineSpec:
    """This machine with its best device, and its bandwidths left at 0: at once, and enough to see what fits."""
    device, name, vram_total, vram_free = _accelerator()
    ram_total, ram_free = memory()
    return MachineSpec(
        device=device,
        device_name=name,
        vram_total=vram_total,
        vram_free=vram_free,
        ram_total=ram_total,
        ram_free=ram_free,
        gpu_bandwidth=0.0,
        pcie_bandwidth=0.0,
        ram_bandwidth=0.0,
        disk_bandwidth=0.0,
        cores=physical_cores(),
    )


def _accelerator() -> tuple[str, str, int, int]:
    """Device, its name, its memory and what is free of it."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return "cuda", torch.cuda.get_device_name(), total, free
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        return "mps", f"{cpu_name()} GPU", total, total - torch.mps.driver_allocated_memory()
    return "cpu", cpu_name(), 0, 0


def free_memory(device: str) -> int:
    """Bytes that may still be taken of the memory in which a kind of device computes."""
    return memory()[1] if device == "cpu" else _accelerator()[3]


def memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Host memory and what may be taken of it, in bytes: the system's, or a container's where that is less."""
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        total, free = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        free = total // 2  # a system without /proc: what is in use is not known here
    for limit, used in _cgroup_limits(proc, cgroups):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every control group around this process (version 2). Pages of files count as free."""
    try:
        own = next(line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = cgroups / own.strip("/")
    for folder in (group, *group.parents):
        if cgroups not in (folder, *folder.parents):
            return
        try:
            limit = int((folder / "memory.max").read_text())  # "max" is no number: no limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield limit, int((folder / "memory.current").read_text()) - int(stat["inactive_file"])
        except (OSError, ValueError, KeyError):
            continue


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, hyperthreads counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        place = topology / f"cpu{cpu}" / "topology"
        try:
            cores.add(((place / "physical_package_id").read_text(), (place / "core_id").read_text()))
        except OSError:
            return len(allowed)
    return len(cores)


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself."""
    return _cpuinfo(cpuinfo, "model name") or platform.processor() or platform.machine()


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Of the features that matter for BF16 and vector arithmetic those that are there."""
    flags = set((_cpuinfo(cpuinfo, "flags") or _cpuinfo(cpuinfo, "Features") or "").split())
    wanted = "avx2 fma avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile asimd bf16 sve i8mm"
    return [feature for feature in wanted.split() if feature in flags]


def _cpuinfo(cpuinfo: Path, key: str) -> str | None:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def peak_rss() -> int:
    """Most host memory that this process has had resident, in bytes; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
