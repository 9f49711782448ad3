"""The speed to expect of a placement: predictions from bandwidths, not measurements.

One token reads every weight that is not a routed expert, and K experts per layer. Each byte is read once from the
memory that holds it, at a share of that memory's bandwidth; the slowest part is the bound. Experts are assumed to be
equally likely, the worst case for a cache: real text reuses them more. On CUDA the kernels of one token
(model/decode_cuda.py) are assumed; their share of the bandwidth and the cost of a launch were measured on an H100 alone
(tests/benchmarks/README.md): 370 tok/s, where 366 were predicted from its measured bandwidth.
"""

from dataclasses import dataclass
from typing import Literal

from dslite.runtime.planning import launch_count
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.planning.hardware import MachineSpec

Bound = Literal["gpu-bandwidth", "pcie", "ram-bandwidth", "disk", "compute"]

GPU_SHARE = 0.85  # of a GPU's bandwidth that long products reach while they run
EAGER_SHARE = 0.65  # the same, expert by expert in torch's kernels
CPU_SHARE = 0.8  # of the measured read bandwidth that decoding reaches on the CPU
UNPINNED_SHARE = 0.5  # of PCIe, when memory is not pinned and the driver copies twice
# A launch beyond its bytes: the way to the next kernel, and until all of the GPU is reading. An H100 took 2.2e-6.
LAUNCH_S = 3e-6
STEP_S = 1e-4  # per token: sampling, the token's way to the host and back
# Per layer with experts elsewhere, beside its launches: the host waits for the ids, finds the misses and launches two
# recordings. Its own work took 16e-6 (the least, on a CPU); the wait and the launches are a guess.
TURN_S = 6e-5


@dataclass(frozen=True)
class Traffic:
    """Experts per layer by memory: in slots, in host memory, on disk."""

    slots: int
    in_ram: int
    on_disk: int
    pinned: bool
    computed: bool  # misses are computed in host memory rather than moved

    @property
    def resident(self) -> bool:
        return not self.in_ram and not self.on_disk


@dataclass(frozen=True)
class Prediction:
    """Tokens per second at a short context. `prefill_tps` is what moving experts allows, None where none move.

    `share` is decode's of the speed at which the bounding memory alone, at its whole bandwidth, would bring the bytes.
    `launches` are a token's kernels on a GPU, 0 on the CPU.
    """

    decode_tps: float
    prefill_tps: float | None
    bound: Bound
    share: float
    launches: int


def predict(machine: MachineSpec, size: Footprint, traffic: Traffic, chunk: int) -> Prediction:
    """Decode speed, what bounds it, and the bound that moving experts sets to prefill."""
    on_cpu = machine.device == "cpu"
    count = 0 if on_cpu else _launches(machine, size, traffic)
    seconds = _cpu_seconds(machine, size, traffic) if on_cpu else _gpu_seconds(machine, size, traffic, count)
    total = _sum_overlapping(seconds, size, traffic, on_cpu=on_cpu)
    moved = _moving_seconds(machine, size, traffic, on_cpu=on_cpu)
    bound = max(seconds, key=lambda part: seconds[part])
    return Prediction(
        decode_tps=1 / total if total else 0.0,
        prefill_tps=chunk / moved if moved else None,
        bound=bound,
        share=_least_seconds(machine, size, traffic, bound) / total if total else 0.0,
        launches=count,
    )


def _share(count: int, size: Footprint) -> float:
    return count / size.config.n_routed_experts


def _seconds(count: float, bandwidth: float) -> float:
    """Time to move `count` bytes; a part that is absent or unmeasured is never waited for."""
    return count / bandwidth if count and bandwidth else 0.0


def _launches(machine: MachineSpec, size: Footprint, traffic: Traffic) -> int:
    """Launches of a token on a GPU; with experts in slots also small copies, and misses in every layer."""
    if machine.device != "cuda":
        return size.config.num_hidden_layers * launch_count.EAGER_LAYER
    if traffic.resident:
        return launch_count.per_token(size.config)
    return launch_count.per_token(size.config, slots=True, computed=traffic.computed, fetched=not traffic.computed)


def _cpu_seconds(machine: MachineSpec, size: Footprint, traffic: Traffic) -> dict[Bound, float]:
    missed = _share(traffic.on_disk, size) * size.routed_per_token
    return {
        "ram-bandwidth": _seconds(size.read_per_token, machine.ram_bandwidth * CPU_SHARE),
        "disk": _seconds(missed, machine.disk_bandwidth),
        "compute": STEP_S,
    }


def _gpu_seconds(machine: MachineSpec, size: Footprint, traffic: Traffic, count: int) -> dict[Bound, float]:
    hits = _share(traffic.slots, size) * size.routed_per_token
    elsewhere = size.routed_per_token - hits
    on_disk = _share(traffic.on_disk, size) * size.routed_per_token
    own = GPU_SHARE if machine.device == "cuda" else EAGER_SHARE
    for_experts = own if traffic.resident else EAGER_SHARE
    return {
        "gpu-bandwidth": _seconds(size.always, machine.gpu_bandwidth * own)
        + _seconds(hits, machine.gpu_bandwidth * for_experts),
        "pcie": 0.0 if traffic.computed else _seconds(elsewhere, _pcie(machine, traffic)),
        "ram-bandwidth": _seconds(elsewhere, machine.ram_bandwidth * CPU_SHARE) if traffic.computed else 0.0,
        "disk": _seconds(on_disk, machine.disk_bandwidth),
        "compute": STEP_S + count * LAUNCH_S + (0 if traffic.resident else size.moe_layers * TURN_S),
    }


def _least_seconds(machine: MachineSpec, size: Footprint, traffic: Traffic, bound: Bound) -> float:
    """The bounding memory at its whole bandwidth, all else for nothing; where launches bound, the memory of the GPU."""
    elsewhere = (1 - _share(traffic.slots, size)) * size.routed_per_token
    if bound == "pcie":
        return _seconds(elsewhere, machine.pcie_bandwidth)
    if bound == "disk":
        return _seconds(_share(traffic.on_disk, size) * size.routed_per_token, machine.disk_bandwidth)
    if machine.device == "cpu":
        return _seconds(size.read_per_token, machine.ram_bandwidth)
    if bound == "ram-bandwidth":
        return _seconds(elsewhere, machine.ram_bandwidth)
    return _seconds(size.always + size.routed_per_token - elsewhere, machine.gpu_bandwidth)


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
