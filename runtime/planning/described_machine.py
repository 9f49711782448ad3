"""A machine that flags describe, in place of this one or in parts of it."""

from dataclasses import replace

from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.planning.bandwidth import Bandwidths
from dslite.runtime.planning.hardware import MachineSpec

# A described GPU where the flags do not say more.
_PCIE = 25e9  # PCIe 4 x16, as measured on pinned memory
_GPU_BANDWIDTH_PER_GIB = 39e9  # a 24 GiB card of 936 GB/s; others lie within a third of it
# And the machine around a GPU that is not here, unless this one has more.
_RAM = 64 * 2**30
_RAM_BANDWIDTH = 70e9  # read of two channels of DDR5-5600, whose data sheet says 89.6


def described_machine(
    here: MachineSpec, device: str, vram: int | None, ram: int | None, given: Bandwidths
) -> MachineSpec:
    """This machine with what was given in place of what it has; memory in bytes, a bandwidth of 0 is not given.

    `device` is a name that EngineOptions takes. Raises ModelUnavailableError for a GPU that is neither here nor
    described.
    """
    kind = here.device if device == "auto" else device.partition(":")[0]
    if device == "auto" and vram is not None and kind == "cpu":
        kind = "cuda"  # memory of a GPU is described: so is a GPU
    memory = vram if vram is not None else here.vram_free
    if kind != "cpu" and not memory:
        raise ModelUnavailableError(
            f"this machine has no {kind} device", "describe one, for instance with --vram 24GiB"
        )
    if kind not in ("cpu", here.device):
        here = _around_a_gpu(here)
    return replace(
        here,
        device=kind,
        vram_total=memory,
        vram_free=memory,
        ram_total=max(here.ram_total, ram or 0),
        ram_free=here.ram_free if ram is None else ram,
        gpu_bandwidth=given.gpu or here.gpu_bandwidth or _GPU_BANDWIDTH_PER_GIB * memory / 2**30,
        pcie_bandwidth=given.pcie or here.pcie_bandwidth or _PCIE,
        ram_bandwidth=given.ram or here.ram_bandwidth,
        disk_bandwidth=given.disk or here.disk_bandwidth,
    )


def _around_a_gpu(here: MachineSpec) -> MachineSpec:
    """A GPU that this machine lacks is in another one, which is taken for no smaller and no slower than usual."""
    return replace(
        here,
        ram_total=max(here.ram_total, _RAM),
        ram_free=max(here.ram_free, _RAM),
        ram_bandwidth=max(here.ram_bandwidth, _RAM_BANDWIDTH),
    )
