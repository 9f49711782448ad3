"""This machine with its measured bandwidths: what the planner predicts speeds from."""

from dataclasses import replace

from dslite.runtime.planning import bandwidth
from dslite.runtime.planning.hardware import MachineSpec, unmeasured
from dslite.runtime.system.processors import cpu_name


def machine(*, refresh: bool = False) -> MachineSpec:
    """This machine with its best device. Bandwidths are measured in the first call, in seconds, and kept."""
    spec = unmeasured()
    speeds = bandwidth.bandwidths(machine_key(spec), spec.device, refresh=refresh)
    return replace(
        spec,
        gpu_bandwidth=speeds.gpu,
        pcie_bandwidth=speeds.pcie,
        ram_bandwidth=speeds.ram,
        disk_bandwidth=speeds.disk,
    )


def machine_key(spec: MachineSpec) -> str:
    """The name under which a machine's bandwidths are kept. Fewer cores read slower, so their number belongs to it."""
    return f"{cpu_name()} | {spec.cores} cores | {spec.ram_total >> 30} GiB | {spec.device_name}"
