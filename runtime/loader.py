"""From a checked folder to a network that runs, with progress."""

from collections.abc import Callable

import torch
from torch import Tensor

from dslite.model.moe import MLP
from dslite.model.transformer import Transformer
from dslite.runtime.checkpoint import Checkpoint
from dslite.runtime.device import ComputeDevice, compute_device, is_out_of_memory
from dslite.runtime.device_plan import DevicePlan
from dslite.runtime.disk import DiskSource, Reader
from dslite.runtime.errors import OutOfMemoryError
from dslite.runtime.events import Loading
from dslite.runtime.experts import ExpertCache
from dslite.runtime.footprint import is_embedding, is_routed
from dslite.runtime.slot_bank import SlotExperts
from dslite.runtime.sources import MATRICES, ExpertSource, HostArena, HostSource, expert_name

_REPORT_BYTES = 64 * 2**20
Report = Callable[[Loading], None]


def load(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    plan: DevicePlan | None = None,
    report: Report = lambda _: None,
    seam: ComputeDevice | None = None,
) -> Transformer:
    """Build the network of a checkpoint on a device, every weight where the plan wants it; by default all resident.

    On the CPU, in the checkpoint's own dtype, resident weights are used where they are mapped: nothing is read or
    copied here. Raises CheckpointError, and OutOfMemoryError where even the fewest slots do not fit.
    """
    if plan is None or plan.source == "resident":
        return _load_resident(checkpoint, device, dtype, plan, report)
    return _Offloading(checkpoint, seam or compute_device(device), dtype, plan, report).load()


def _load_resident(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, plan: DevicePlan | None, report: Report
) -> Transformer:
    progress = _Progress(checkpoint.nbytes, report)

    def take(name: str) -> Tensor:
        tensor = checkpoint.tensor(name)
        progress.add(tensor.nbytes)
        stays = plan is not None and not plan.embedding_on_device and is_embedding(name)
        return tensor.to(device="cpu" if stays else device, dtype=dtype)

    return Transformer.build(checkpoint.config, take)


class _Progress:
    """Tells how many bytes are in place, not too often."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._done = self._told = 0
        report(Loading(0, total))

    def add(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= _REPORT_BYTES or self._done == self._total:
            self._told = self._done
            self._report(Loading(self._done, self._total))


class _Offloading:
    """The loading of a network whose routed experts have slots over a slower source."""

    def __init__(
        self, checkpoint: Checkpoint, device: ComputeDevice, dtype: torch.dtype, plan: DevicePlan, report: Report
    ) -> None:
        self._checkpoint, self._device, self._dtype, self._plan = checkpoint, device, dtype, plan
        self._reader = Reader(checkpoint)
        routed = 0 if plan.source == "host" else sum(e.nbytes for e in checkpoint.entries.values() if is_routed(e.name))
        self._progress = _Progress(checkpoint.nbytes - routed, report)

    def load(self) -> Transformer:
        self._cache = self._make_cache(self._source())
        return Transformer.build(self._checkpoint.config, self._take, lambda layer: SlotExperts(self._cache, layer))

    def _source(self) -> ExpertSource:
        config, plan = self._checkpoint.config, self._plan
        if plan.source == "disk":
            return DiskSource(self._checkpoint, self._reader, self._dtype)
        if plan.source == "mapped":
            return HostSource(config, self._device, self._dtype, self._mapped)
        arena = HostArena(config, range(config.first_k_dense_replace, config.num_hidden_layers), self._dtype)
        for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
            for expert in range(config.n_routed_experts):
                self._fill(arena.expert(layer, expert), layer, expert)
        if self._device.device.type == "cuda":
            arena.pin()
        return HostSource(config, self._device, self._dtype, arena.expert)

    def _mapped(self, layer: int, expert: int) -> MLP:
        return MLP(*(self._checkpoint.tensor(expert_name(layer, expert, matrix)) for matrix in MATRICES))

    def _fill(self, target: MLP, layer: int, expert: int) -> None:
        for part, matrix in zip(target.matrices, MATRICES, strict=True):
            part.copy_(self._read(expert_name(layer, expert, matrix)))

    def _read(self, name: str) -> Tensor:
        """A tensor in memory of its own: mapped pages would be the first to go where memory is short."""
        entry = self._checkpoint.entries[name]
        self._progress.add(entry.nbytes)
        return self._reader.tensor(entry)

    def _take(self, name: str) -> Tensor:
        stays = not self._plan.embedding_on_device and is_embedding(name)
        return self._read(name).to(device="cpu" if stays else self._device.device, dtype=self._dtype)

    def _make_cache(self, source: ExpertSource) -> ExpertCache:
        """With the plan's slots, or as many as there turns out to be memory for."""
        slots, fewest = self._plan.slots, self._checkpoint.config.num_experts_per_tok
        while True:
            try:
                return ExpertCache(
                    self._checkpoint.config,
                    self._device,
                    source,
                    slots=slots,
                    spare=self._plan.spare,
                    slot_bytes=self._plan.slot_bytes,
                    compute_below=self._plan.stream_from if self._plan.miss == "compute" else 0,
                )
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                if slots == fewest:
                    raise OutOfMemoryError.of(error, f"{slots} experts per layer") from None
                slots = max(fewest, slots - max(1, slots // 8))


def expert_cache(model: Transformer) -> ExpertCache | None:
    """The slots of a network; None where every expert is resident."""
    banks = (getattr(getattr(layer, "mlp", None), "experts", None) for layer in model.layers)
    return next((bank.cache for bank in banks if isinstance(bank, SlotExperts)), None)
