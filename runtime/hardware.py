"""What this machine has: memory, and how fast it can be read."""

import sys
from dataclasses import dataclass


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


def peak_rss() -> int:
    """Most host memory that this process has had resident, in bytes; 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
