"""Loads the network of a checked folder, with progress."""

import logging
import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from dslite.model.moe import MLP
from dslite.model.quantized import QuantizedMatrix, Weight
from dslite.model.transformer import Transformer
from dslite.runtime.device import ComputeDevice, anonymous_memory, compute_device
from dslite.runtime.events import Loading, LoadingEvent
from dslite.runtime.memory import is_out_of_memory, with_room
from dslite.runtime.planning.device_plan import DevicePlan, Source
from dslite.runtime.planning.footprint import is_embedding, is_routed
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.disk import DiskSource, Reader
from dslite.runtime.weights.expert_blocks import ExpertBlocks
from dslite.runtime.weights.expert_stats import ExpertStats
from dslite.runtime.weights.experts import ExpertCache
from dslite.runtime.weights.packed_layout import MATRICES, PackedRange, piece_of
from dslite.runtime.weights.quantized_checkpoint import quantize_piece, views
from dslite.runtime.weights.slot_bank import SlotExperts
from dslite.runtime.weights.sources import ExpertForm, ExpertSource, HostArena, HostSource, expert_name
from dslite.runtime.weights.staging import Staging
from dslite.runtime.weights.warm_up import warm_up

_REPORT_BYTES = 64 * 2**20
Report = Callable[[LoadingEvent], None]
log = logging.getLogger(__name__)


def load(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    plan: DevicePlan | None = None,
    report: Report = lambda _: None,
    backend: ComputeDevice | None = None,
) -> Transformer:
    """Build the network of a checkpoint on a device, weights placed by the plan; by default all resident.

    On the CPU, in the checkpoint's own dtype, resident weights are used where they are mapped: nothing is read or
    copied here. Raises CheckpointError, and OutOfMemoryError where the weights, or the fewest slots, do not fit.
    """
    resident = plan is None or plan.source == "resident"
    backend = backend or compute_device(device)
    if resident and backend.device.type == "cpu":
        return _load_mapped(checkpoint, backend, dtype, report)
    return _CopyingLoader(checkpoint, backend, dtype, plan, report).load()


def _load_mapped(checkpoint: Checkpoint, device: ComputeDevice, dtype: torch.dtype, report: Report) -> Transformer:
    progress = _LoadProgress(checkpoint.nbytes, report)

    def take(name: str) -> Weight:
        weight = checkpoint.weight(name)
        progress.add(weight.nbytes)
        return weight if isinstance(weight, QuantizedMatrix) else weight.to(dtype)

    return Transformer.build(
        checkpoint.config, take, recorder=device, check=checkpoint.check, weights=checkpoint.weights
    )


class _LoadProgress:
    """Reports the bytes that are loaded, every 64 MiB."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._done = self._told = 0
        report(Loading(0, total))

    def add(self, count: int) -> None:
        self._done += count
        if self._done - self._told >= _REPORT_BYTES or self._done == self._total:
            self._told = self._done
            self._report(Loading(self._done, self._total))


class _CopyingLoader:
    """Loads a network whose weights are copied from the files: all of them, or all but routed experts, which then have
    slots over a slower source. What must fit is allocated before the first byte is read; slots beyond the fewest get
    what is left once libraries, kernels and recordings have their memory.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: ComputeDevice, dtype: torch.dtype, plan: DevicePlan | None, report: Report
    ) -> None:
        self._checkpoint, self._device, self._dtype, self._plan = checkpoint, device, dtype, plan
        self._report = report
        self._reader = Reader(checkpoint)
        left = plan is not None and plan.source in ("disk", "mapped")
        routed = sum(entry.nbytes for entry in checkpoint.entries.values() if is_routed(entry.name)) if left else 0
        self._progress = _LoadProgress(checkpoint.nbytes - routed, report)
        self._staging = Staging(self._reader, device, self._progress.add)
        self._form = ExpertForm.of(checkpoint, dtype)
        parts, part = (3, self._form.nbytes // 3) if self._form.format is None else (1, self._form.pages)
        self._blocks = ExpertBlocks(checkpoint.config.n_routed_experts, parts, part, device.allocate)
        self._pieces = piece_of(checkpoint.config, checkpoint.weights)
        self._taken: dict[str, QuantizedMatrix] = {}  # of pieces that have memory
        self._arena: HostArena | None = None

    def load(self) -> Transformer:
        plan, config = self._plan, self._checkpoint.config
        if plan is None or plan.source == "resident":
            weights = self._checkpoint.weights
            model = Transformer.build(config, self._take, recorder=self._device, weights=weights)
        else:
            model = self._build_offloaded(plan)
        self._staging.run()
        cache = expert_cache(model)
        if plan is not None and cache is not None:
            pinned = self._arena is None or self._arena.pin(self._device)
            cache.compute_below = plan.computed_below(pinned=pinned)
        if self._device.device.type == "cuda":
            warm_up(model, self._report)
        if plan is not None and cache is not None:
            self._add_slots(plan, cache)
            cache.stats = ExpertStats(cache.slots, config.n_routed_experts)  # without what warming up counted
        if plan is None or plan.source != "disk":
            self._reader.close()
        return model

    def _build_offloaded(self, plan: DevicePlan) -> Transformer:
        cache = self._make_cache(plan, self._source(plan.source))
        return Transformer.build(
            self._checkpoint.config,
            self._take,
            lambda layer: SlotExperts(cache, layer),
            recorder=self._device,
            check=self._checkpoint.check,  # of what is mapped: experts, with some sources
            weights=self._checkpoint.weights,
        )

    def _source(self, source: Source) -> ExpertSource:
        config, format = self._checkpoint.config, self._form.format
        if source == "disk":
            return DiskSource(self._checkpoint, self._reader, self._dtype)
        if source == "mapped":
            return HostSource(config, self._device, self._dtype, self._mapped, format)
        layers = range(config.first_k_dense_replace, config.num_hidden_layers)
        arena = self._arena = HostArena(config, layers, self._dtype, format)
        for layer, expert in product(layers, range(config.n_routed_experts)):
            if format is not None:
                self._fill(self._pieces[expert_name(layer, expert, MATRICES[0])], arena.buffer(layer, expert))
                continue
            for part, matrix in zip(arena.expert(layer, expert).tensors, MATRICES, strict=True):
                self._staging.add(self._checkpoint.entries[expert_name(layer, expert, matrix)], part)
        return HostSource(config, self._device, self._dtype, arena.expert, format)

    def _mapped(self, layer: int, expert: int) -> MLP:
        return MLP(*(self._checkpoint.weight(expert_name(layer, expert, matrix)) for matrix in MATRICES))

    def _fill(self, piece: PackedRange, target: Tensor) -> None:
        """Bring a piece into memory of its bytes in whole pages: staged from a packed file, or quantized here."""
        entry = self._checkpoint.entries.get(piece.name)
        if entry is not None and entry.dtype is torch.uint8:
            self._staging.add(entry, target)
            return
        made = target if target.device.type == "cpu" else torch.empty(piece.file_bytes, dtype=torch.uint8)
        quantize_piece(self._checkpoint, piece, made)
        self._checkpoint.unmap()
        if made is not target:
            target.copy_(made)
        self._progress.add(sum(self._checkpoint.entries[name].nbytes for name in piece.members))

    def _take(self, name: str) -> Weight:
        """Memory for a weight, not mapped from its file: mapped pages are evicted first where memory is short."""
        if (piece := self._pieces.get(name)) is None:
            return self._take_tensor(name)
        if name not in self._taken:
            memory = self._allocate(piece.name, piece.file_bytes)
            self._fill(piece, memory)
            self._taken |= views(piece, memory)
        return self._taken.pop(name)

    def _take_tensor(self, name: str) -> Tensor:
        entry = self._checkpoint.entries[name]
        memory = self._allocate(name, math.prod(entry.shape) * self._dtype.itemsize)
        target = memory.view(self._dtype).view(entry.shape)
        self._staging.add(entry, target)
        return target

    def _allocate(self, name: str, count: int) -> Tensor:
        stays = self._plan is not None and not self._plan.embedding_on_device and is_embedding(name)
        what = f"weights of {self._checkpoint.nbytes / 1e9:.1f} GB"
        return with_room(lambda: anonymous_memory(count) if stays else self._blocks.allocate(name, count), None, what)

    def _make_cache(self, plan: DevicePlan, source: ExpertSource) -> ExpertCache:
        """The fewest slots. Raises OutOfMemoryError."""
        config = self._checkpoint.config
        fewest = min(plan.slots, config.num_experts_per_tok)
        return with_room(
            lambda: ExpertCache(
                config, self._device, source, slots=fewest, spare=plan.spare, slot_bytes=plan.slot_bytes
            ),
            None,
            f"{fewest} experts per layer",
        )

    def _add_slots(self, plan: DevicePlan, cache: ExpertCache) -> None:
        """The other slots of the plan, as many as what is free holds beside the latent cache and the workspace."""
        wanted = plan.slots - cache.slots
        if (free := self._device.free_bytes()) is not None:
            room = free - plan.kv_bytes - (plan.workspace_bytes - plan.spare * plan.slot_bytes)
            wanted = min(wanted, max(0, room) // max(1, plan.slot_bytes * len(cache.layers)))
        try:
            cache.add_slots(wanted)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            for _ in range(cache.slots // 8):  # room for what comes and goes with a pass
                cache.give_back()
        if cache.slots < plan.slots:
            log.warning("memory holds %d of %d planned expert slots per layer", cache.slots, plan.slots)


def expert_cache(model: Transformer) -> ExpertCache | None:
    """The expert cache of a network; None where every expert is resident."""
    banks = (getattr(getattr(layer, "mlp", None), "experts", None) for layer in model.layers)
    return next((bank.cache for bank in banks if isinstance(bank, SlotExperts)), None)
