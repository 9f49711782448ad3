"""The placement of weights: a pure function from a machine and a network to a plan.

On every machine some routed experts of each layer are in slots on the compute device, the others in a slower source. A
plan gives the number of slots, the source behind them and what happens on a miss. It counts every byte before anything
is loaded, so that a plan that fits can be carried out.
"""

from dataclasses import replace

from dslite.model.config import ModelConfig
from dslite.runtime.errors import UsageError
from dslite.runtime.planning.device_plan import DevicePlan, Miss, PlanRequest, Source
from dslite.runtime.planning.footprint import Footprint, growth_bytes
from dslite.runtime.planning.hardware import MachineSpec
from dslite.runtime.planning.prediction import UNPINNED_SHARE, Traffic, host_beats_pcie, predict

DEFAULT_CONTEXT = 32_768  # what the paper says for Lite, though its config.json allows more
PREFILL_CHUNKS = (2048, 1024, 512, 256)  # tokens; shorter ones only where the longest does not fit
MEMORY_SHARE = 0.93  # of a memory that a plan uses; the rest is for the driver, other programs and fragmentation
CPU_PROCESS = 512 * 2**20  # Python, torch and their threads
GPU_PROCESS = 1536 * 2**20  # the same with the driver's libraries
CORE_FLOPS = 50e9  # of products of a few rows in BF16, per core, cautiously
_CONTEXT_STEP = 256  # tokens
_SPARE = {"host": 4, "mapped": 4, "disk": 16, "resident": 0}  # buffers in flight besides the slots


def plan(machine: MachineSpec, config: ModelConfig, request: PlanRequest | None = None) -> DevicePlan:
    """The best placement of a network on a machine. Raises UsageError for a request outside the model's range."""
    request = request or PlanRequest()
    _check(config, request)
    asked = _place(machine, config, request)
    if asked.fits:
        return asked
    return replace(asked, nearest=_nearest(machine, config, request))


def pick_context(asked: int | None, config: ModelConfig) -> int:
    """Tokens that the context holds. Raises UsageError."""
    most = config.max_position_embeddings
    if asked is None:
        return min(DEFAULT_CONTEXT, most)
    if not 1 <= asked <= most:
        raise UsageError(f"--ctx-size is {asked}; it must be from 1 to {most} for this model")
    return asked


def _check(config: ModelConfig, request: PlanRequest) -> None:
    fewest, most = config.num_experts_per_tok, config.n_routed_experts
    if request.expert_slots is not None and not fewest <= request.expert_slots <= most:
        raise UsageError(f"--expert-slots is {request.expert_slots}; it must be from {fewest} to {most} for this model")
    pick_context(request.context, config)


def _nearest(machine: MachineSpec, config: ModelConfig, request: PlanRequest) -> DevicePlan | None:
    """Fewer slots, then a shorter context, then the CPU."""
    free = replace(request, expert_slots=None)
    places = [machine] if machine.device == "cpu" else [machine, replace(machine, device="cpu")]
    for place in places:
        candidate = _place(place, config, free)
        if candidate.fits:
            return candidate
        shorter = _longest_context(place, config, replace(free, context=candidate.context))
        if shorter is not None:
            return shorter
    return None


def _longest_context(machine: MachineSpec, config: ModelConfig, request: PlanRequest) -> DevicePlan | None:
    """The plan with the longest context below the asked one that fits, in steps of 256 tokens."""
    assert request.context is not None
    low, high, best = 1, (request.context - 1) // _CONTEXT_STEP, None
    while low <= high:
        middle = (low + high) // 2
        candidate = _place(machine, config, replace(request, context=middle * _CONTEXT_STEP))
        if candidate.fits:
            low, best = middle + 1, candidate
        else:
            high = middle - 1
    return best


def _place(machine: MachineSpec, config: ModelConfig, request: PlanRequest) -> DevicePlan:
    """The plan of one context on one device: with the longest prefill chunk that leaves room for the fewest slots."""
    placer = _OnCpu if machine.device == "cpu" else _OnGpu
    for chunk in PREFILL_CHUNKS:
        candidate = placer(machine, config, request, chunk).plan()
        if candidate.fits:
            break
    return candidate


class _Placer:
    """The parts of a placement that CPU and GPU share."""

    def __init__(self, machine: MachineSpec, config: ModelConfig, request: PlanRequest, chunk: int) -> None:
        self.machine, self.config, self.request, self.chunk = machine, config, request, chunk
        self.size = Footprint(config, request.dtype, request.weights)
        self.context = pick_context(request.context, config)
        self.kv = self.size.kv_per_token * self.context
        count = self.size.gpu_workspace if machine.device == "cuda" else self.size.workspace
        self.activations = count(chunk, self.context)
        self.ram = request.ram if request.ram is not None else int(machine.ram_free * MEMORY_SHARE)

    def slots(self, room: int, slot_bytes: int) -> int:
        """Slots per layer: as asked, or as many as `room` bytes hold; where the chunk is cut for room, the fewest."""
        fewest, most = self.config.num_experts_per_tok, self.config.n_routed_experts
        if self.request.expert_slots is not None:
            return self.request.expert_slots
        per_slot = slot_bytes * self.size.moe_layers
        fit = room // per_slot if per_slot else most
        return max(fewest, min(fit, most if self.chunk == PREFILL_CHUNKS[0] else fewest))

    def spare(self, source: Source) -> int:
        return min(_SPARE[source], self.config.n_routed_experts) if self.size.moe_layers else 0

    def miss(self, source: Source, *, pinned: bool) -> Miss:
        """Compute in host memory where reading it is faster than PCIe."""
        if self.request.miss != "auto":
            return self.request.miss
        if source == "resident" or self.machine.device != "cuda":
            return "fetch"
        return "compute" if host_beats_pcie(self.machine, pinned=pinned) else "fetch"

    def compute_below(self, *, pinned: bool) -> int:
        """Tokens from which moving an expert is faster than computing it on the host for those that chose it."""
        config, machine = self.config, self.machine
        pcie = machine.pcie_bandwidth * (1.0 if pinned else UNPINNED_SHARE)
        if not pcie or not self.size.moe_layers:
            return 1
        weights = 3 * config.hidden_size * config.moe_intermediate_size
        rows = self.size.expert / pcie * machine.cores * CORE_FLOPS / (2 * weights)
        return max(1, round(rows * config.n_routed_experts / config.num_experts_per_tok))

    def build(
        self, *, source: Source, miss: Miss, slots: int, spare: int, slot_bytes: int, in_ram: int, embedded: bool,
        resident: int, workspace: int, vram: int, ram: int, reason: str | None,
    ) -> DevicePlan:  # fmt: skip
        size, machine = self.size, self.machine
        on_disk = self.config.n_routed_experts - slots - in_ram
        traffic = Traffic(
            slots=slots, in_ram=in_ram, on_disk=on_disk, pinned=source == "host", computed=miss == "compute"
        )
        return DevicePlan(
            device=machine.device,
            dtype=self.request.dtype,
            weights=self.request.weights,
            context=self.context,
            prefill_chunk=self.chunk,
            source=source,
            miss=miss,
            compute_below=self.compute_below(pinned=source == "host"),
            compute_unpinned=self.compute_below(pinned=False) if self.miss(source, pinned=False) == "compute" else 0,
            slots=slots,
            spare=spare,
            slot_bytes=slot_bytes,
            experts_in_ram=in_ram,
            experts_on_disk=on_disk,
            embedding_on_device=embedded,
            parameters=size.parameters,
            weights_bytes=size.weights,
            resident_bytes=resident,
            kv_bytes_per_token=size.kv_per_token,
            kv_bytes=self.kv,
            workspace_bytes=workspace,
            vram_bytes=vram,
            ram_bytes=ram,
            bytes_read_per_token=size.read_per_token,
            prediction=predict(machine, size, traffic, self.chunk),
            reason=reason,
        )


class _OnCpu(_Placer):
    """All weights mapped where memory holds them; else slots in memory over the files."""

    def plan(self) -> DevicePlan:
        size, most = self.size, self.config.n_routed_experts
        workspace = self.activations + CPU_PROCESS
        whole = size.weights + self.kv + workspace
        if self.request.expert_slots in (None, most) and (whole <= self.ram or not size.moe_layers):
            return self._build(most, "resident", size.expert, size.weights, workspace)
        workspace += self.spare("disk") * size.direct_slot
        fixed = size.always + size.embedding
        slots = self.slots(self.ram - fixed - self.kv - workspace, size.direct_slot)
        if slots == most:
            return self._build(most, "resident", size.expert, size.weights, self.activations + CPU_PROCESS)
        return self._build(
            slots, "disk", size.direct_slot, fixed + slots * size.moe_layers * size.direct_slot, workspace
        )

    def _build(self, slots: int, source: Source, slot_bytes: int, resident: int, workspace: int) -> DevicePlan:
        ram = resident + self.kv + workspace
        return self.build(
            source=source,
            miss="fetch",
            slots=slots,
            spare=self.spare(source),
            slot_bytes=slot_bytes,
            in_ram=0,
            embedded=True,
            resident=resident,
            workspace=workspace,
            vram=0,
            ram=ram,
            reason=None if ram <= self.ram else _shortage("host memory", ram, self.ram, slots, self.context),
        )


class _OnGpu(_Placer):
    """On the GPU the weights that every token reads and as many experts as fit; the others in host memory."""

    def __init__(self, machine: MachineSpec, config: ModelConfig, request: PlanRequest, chunk: int) -> None:
        super().__init__(machine, config, request, chunk)
        self.activations += growth_bytes(config, self.context, self.size.item)  # the latent cache grows on a device

    def plan(self) -> DevicePlan:
        size, most = self.size, self.config.n_routed_experts
        vram = int((self.machine.vram_free if self.request.vram is None else self.request.vram) * MEMORY_SHARE)
        room = vram - size.always - self.kv - self.activations
        if self.request.expert_slots in (None, most) and (room >= size.routed or not size.moe_layers):
            return self._build(most, "resident", vram, embedded=room - size.routed >= size.embedding)
        source: Source = "host" if size.routed + size.embedding + GPU_PROCESS <= self.ram else "mapped"
        slots = self.slots(room - self.spare(source) * size.expert, size.expert)
        return self._build(slots, "resident" if slots == most else source, vram, embedded=False)

    def _build(self, slots: int, source: Source, vram: int, *, embedded: bool) -> DevicePlan:
        size = self.size
        spare = self.spare(source)
        resident = size.always + slots * size.moe_layers * size.expert + embedded * size.embedding
        workspace = self.activations + spare * size.expert
        needed = resident + self.kv + workspace
        in_ram = self._in_ram(slots, source)
        # The arena holds every routed expert; of mapped files the system caches the pages of those that fit.
        held = self.config.n_routed_experts if source == "host" else in_ram if source == "mapped" else 0
        ram = GPU_PROCESS + (not embedded) * size.embedding + held * size.moe_layers * size.expert
        reason = None
        if needed > vram:
            reason = _shortage("GPU memory", needed, vram, slots, self.context)
        elif ram > self.ram:
            reason = _shortage("host memory", ram, self.ram, slots, self.context)
        return self.build(
            source=source,
            miss=self.miss(source, pinned=source == "host"),
            slots=slots,
            spare=spare,
            slot_bytes=size.expert,
            in_ram=in_ram,
            embedded=embedded,
            resident=resident,
            workspace=workspace,
            vram=needed,
            ram=ram,
            reason=reason,
        )

    def _in_ram(self, slots: int, source: Source) -> int:
        """Experts per layer that have no slot and fit into host memory."""
        others = self.config.n_routed_experts - slots
        if source != "mapped":
            return others
        pages = self.ram - GPU_PROCESS - self.size.embedding
        return max(0, min(others, pages // (self.size.expert * self.size.moe_layers)))


def _shortage(memory: str, needed: int, present: int, slots: int, context: int) -> str:
    return (
        f"{needed / 1e9:.1f} GB of {memory} are needed for {slots} experts per layer and a context of {context:,}, "
        f"and {max(present, 0) / 1e9:.1f} GB may be used"
    )
