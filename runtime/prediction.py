"""The speed to expect of a placement: predictions from bandwidths, not measurements.

One token reads every weight that is not a routed expert, and K experts per layer. Each byte is read once, where it
lies, at a share of that memory's bandwidth; the slowest part is the bound. Experts are taken as equally likely, which
is the worst case for a cache: real text is kinder.
"""

from dataclasses import dataclass
from typing import Literal

from dslite.runtime.footprint import Footprint
from dslite.runtime.hardware import MachineSpec

Bound = Literal["gpu-bandwidth", "pcie", "ram-bandwidth", "disk", "compute"]

GPU_SHARE = (
    0.65  # of a GPU's bandwidth that decoding reaches with captured graphs: an aim, 62 % is published for Mixtral
)
CPU_SHARE = 0.8  # of the measured read bandwidth that decoding reaches on the CPU
UNPINNED_SHARE = 0.5  # of PCIe, when memory is not pinned and the driver copies twice
STEP_S = 1e-4  # per token: launches, sampling
TURN_S = 6e-5  # per layer with experts elsewhere: the router's choice to the host, results back


@dataclass(frozen=True)
class Traffic:
    """Experts per layer by where they lie: in slots, in host memory, on disk."""

    slots: int
    in_ram: int
    on_disk: int
    pinned: bool
    computed: bool  # misses are computed in host memory rather than moved


@dataclass(frozen=True)
class Prediction:
    """Tokens per second at a short context. `prefill_tps` is what moving experts allows, None where none move."""

    decode_tps: float
    prefill_tps: float | None
    bound: Bound


def predict(machine: MachineSpec, size: Footprint, traffic: Traffic, chunk: int) -> Prediction:
    """Decode speed, what bounds it, and the bound that moving experts sets to prefill."""
    on_cpu = machine.device == "cpu"
    seconds = _cpu_seconds(machine, size, traffic) if on_cpu else _gpu_seconds(machine, size, traffic)
    total = _sum_overlapping(seconds, size, traffic, on_cpu=on_cpu)
    moved = _moving_seconds(machine, size, traffic, on_cpu=on_cpu)
    return Prediction(
        decode_tps=1 / total if total else 0.0,
        prefill_tps=chunk / moved if moved else None,
        bound=max(seconds, key=lambda part: seconds[part]),
    )


def _share(count: int, size: Footprint) -> float:
    return count / size.config.n_routed_experts


def _seconds(count: float, bandwidth: float) -> float:
    """Time to move `count` bytes; a part that is absent or unmeasured is never waited for."""
    return count / bandwidth if count and bandwidth else 0.0


def _cpu_seconds(machine: MachineSpec, size: Footprint, traffic: Traffic) -> dict[Bound, float]:
    missed = _share(traffic.on_disk, size) * size.routed_per_token
    return {
        "ram-bandwidth": _seconds(size.read_per_token, machine.ram_bandwidth * CPU_SHARE),
        "disk": _seconds(missed, machine.disk_bandwidth),
        "compute": STEP_S,
    }


def _gpu_seconds(machine: MachineSpec, size: Footprint, traffic: Traffic) -> dict[Bound, float]:
    hits = _share(traffic.slots, size) * size.routed_per_token
    in_ram = _share(traffic.in_ram, size) * size.routed_per_token
    on_disk = _share(traffic.on_disk, size) * size.routed_per_token
    turns = size.moe_layers if traffic.in_ram or traffic.on_disk else 0
    return {
        "gpu-bandwidth": _seconds(size.always + hits, machine.gpu_bandwidth * GPU_SHARE),
        "pcie": 0.0 if traffic.computed else _seconds(in_ram + on_disk, _pcie(machine, traffic)),
        "ram-bandwidth": _seconds(in_ram + on_disk, machine.ram_bandwidth * CPU_SHARE) if traffic.computed else 0.0,
        "disk": _seconds(on_disk, machine.disk_bandwidth),
        "compute": STEP_S + turns * TURN_S,
    }


def _pcie(machine: MachineSpec, traffic: Traffic) -> float:
    return machine.pcie_bandwidth * (1.0 if traffic.pinned else UNPINNED_SHARE)


def host_beats_pcie(machine: MachineSpec, *, pinned: bool) -> bool:
    """Whether an expert in host memory is computed there sooner than it is brought to the GPU."""
    return machine.ram_bandwidth * CPU_SHARE > machine.pcie_bandwidth * (1.0 if pinned else UNPINNED_SHARE)


def _sum_overlapping(seconds: dict[Bound, float], size: Footprint, traffic: Traffic, *, on_cpu: bool) -> float:
    """Misses go on beside the layer's shared experts and, where the disk brings them, beside its hits.

    On a GPU the hits overlap too, but count in full: they end long before misses do, and the figure stays cautious.
    """
    own: Bound = "ram-bandwidth" if on_cpu else "gpu-bandwidth"
    others = sum(time for part, time in seconds.items() if part not in (own, "compute"))
    hits = _share(traffic.slots, size) * size.routed_per_token
    read = size.read_per_token if on_cpu else size.always + hits
    beside = size.shared_per_layer * size.moe_layers + (hits if on_cpu else 0)
    return seconds[own] + others - min(others, seconds[own] * beside / read) + seconds["compute"]


def _moving_seconds(machine: MachineSpec, size: Footprint, traffic: Traffic, *, on_cpu: bool) -> float:
    """Time in which a chunk that uses every expert has those without a slot brought to the device."""
    on_disk = _share(traffic.on_disk, size) * size.routed
    from_disk = _seconds(on_disk, machine.disk_bandwidth)
    if on_cpu:
        return from_disk
    return max(from_disk, _seconds(_share(traffic.in_ram, size) * size.routed + on_disk, _pcie(machine, traffic)))
