"""A machine as the planner sees it: processors, memory and devices, without measuring how fast they are."""

from dataclasses import dataclass

from dslite.runtime.system.memory import host_memory
from dslite.runtime.system.processors import cpu_name, processors


@dataclass(frozen=True)
class MachineSpec:
    """This machine, measured, or a described one.

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
    cores: int  # that compute best together: physical, of the fast class, within the quota


def unmeasured() -> MachineSpec:
    """This machine with its best device and bandwidths of 0: in milliseconds, and enough to see what fits."""
    device, name, vram_total, vram_free = _accelerator()
    memory = host_memory()
    return MachineSpec(
        device=device,
        device_name=name,
        vram_total=vram_total,
        vram_free=vram_free,
        ram_total=memory.total,
        ram_free=memory.free,
        gpu_bandwidth=0.0,
        pcie_bandwidth=0.0,
        ram_bandwidth=0.0,
        disk_bandwidth=0.0,
        cores=processors().threads,
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
    return host_memory().free if device == "cpu" else _accelerator()[3]
