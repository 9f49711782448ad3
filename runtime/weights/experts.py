"""LRU cache of routed experts on the compute device, over a slower source.

Each buffer is FREE, LOADING (a fetch writes it), RESIDENT (a slot of one layer) or STALE (loading, no longer wanted). A
miss loads into a free buffer; after its first use the buffer replaces the layer's LRU slot by swapping indices, so an
expert is copied once. Where the host computes misses, only an expert that is worth a slot is copied (admission). On
CUDA a buffer is rewritten only after the event recorded behind the last kernel that read it.

Misses whose source lies in host memory may be computed there instead, while the device computes the hits; in both cases
each expert's output is stored by its position before all are added in one fixed order, so that the contents of the
slots never show in the result.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from dslite.model.config import ModelConfig
from dslite.model.errors import DsliteError
from dslite.model.moe import MLP
from dslite.runtime.device import ComputeDevice, Event
from dslite.runtime.weights.admission import RecentUses
from dslite.runtime.weights.arena import Arena
from dslite.runtime.weights.expert_stats import ExpertStats
from dslite.runtime.weights.sources import ExpertSource, Fetch

log = logging.getLogger(__name__)
Key = tuple[int, int]  # layer, expert


class BufferState(Enum):
    """What a buffer of the arena holds."""

    FREE = "free"
    LOADING = "loading"  # a fetch writes it, or the layer that wanted the expert computes with it
    RESIDENT = "resident"  # a slot of one layer
    STALE = "stale"  # a fetch writes it, and the expert is no longer wanted


@dataclass
class ResidentExpert:
    """An expert in a buffer. `tokens` chose it when it was last used, in pass `last_pass`."""

    buffer: int
    mlp: MLP
    last_pass: int = 0
    tokens: int = 0


@dataclass
class _LoadingExpert:
    """A fetch into a buffer, and the expert's last use where the host computed it in the meantime."""

    buffer: int
    fetch: Fetch
    last_pass: int = 0
    tokens: int = 0


class ExpertCache:
    """The slots of all layers, the spare buffers, and the fetches into them."""

    def __init__(
        self,
        config: ModelConfig,
        device: ComputeDevice,
        source: ExpertSource,
        *,
        slots: int,
        spare: int,
        slot_bytes: int,
        compute_below: int = 0,
    ) -> None:
        """`spare` buffers beside the slots take what is being loaded. `compute_below`: passes of fewer tokens have
        their misses computed in host memory, if the source has them there.
        """
        self.config, self.device, self.source = config, device, source
        self.slots, self.compute_below = 0, compute_below
        self.layers = range(config.first_k_dense_replace, config.num_hidden_layers)
        self.stats = ExpertStats(slots, config.n_routed_experts)
        self._uses = RecentUses(self.layers, config.n_routed_experts)
        self.arena = Arena(device, slot_bytes)
        self._free: list[int] = self.arena.grow(spare)
        self.add_slots(slots)
        self._resident: dict[int, dict[int, ResidentExpert]] = {layer: {} for layer in self.layers}
        self._loading: dict[Key, _LoadingExpert] = {}
        self._queue: deque[Key] = deque()
        self._stale: list[_LoadingExpert] = []  # their buffers are free when their fetches end
        self._last_read: dict[int, Event] = {}  # buffer → the event behind which it may be written
        self._pass = 0

    def add_slots(self, count: int) -> None:
        """Add so many slots to every layer. Raises what `is_out_of_memory` knows; slots that were added stay."""
        for _ in range(count):
            self._free += self.arena.grow(len(self.layers))
            self.slots += 1
            self.stats.slots = self.slots

    @property
    def states(self) -> dict[int, BufferState]:
        """The state of every buffer of the arena."""
        states = dict.fromkeys(self.arena.buffers, BufferState.LOADING)
        states |= dict.fromkeys(self._free, BufferState.FREE)
        states |= dict.fromkeys((loading.buffer for loading in self._stale), BufferState.STALE)
        for layer in self._resident.values():
            states |= dict.fromkeys((expert.buffer for expert in layer.values()), BufferState.RESIDENT)
        return states

    def resident(self, layer: int) -> dict[int, ResidentExpert]:
        """The experts in a layer's slots."""
        return self._resident[layer]

    def loading(self, layer: int) -> list[int]:
        """The experts of a layer that are being fetched."""
        return [expert for where, expert in self._loading if where == layer]

    def prefetch(self, layer: int, experts: Sequence[int]) -> None:
        """Queue experts of a layer behind those already queued; fetches begin as far as buffers are free."""
        for expert in experts:
            key = (layer, expert)
            if expert not in self._resident[layer] and key not in self._loading and key not in self._queue:
                self._queue.append(key)
        self._start_loads()

    def _start_loads(self) -> None:
        for loading in [loading for loading in self._stale if loading.fetch.passed()]:
            self._stale.remove(loading)
            self._reclaim(loading)
        while self._free and self._queue:
            layer, expert = self._queue.popleft()
            number = self._free.pop()
            try:
                fetch = self.source.fetch(layer, expert, self.arena.buffer(number), self._last_read.get(number))
            except BaseException:
                self._free.append(number)
                raise
            self._last_read.pop(number, None)
            self._loading[layer, expert] = _LoadingExpert(number, fetch)
            self.stats.bytes_moved += self.source.nbytes_moved

    def load(self, layer: int, expert: int) -> ResidentExpert:
        """Wait for a missing expert; what is launched from now on may read it. Raises CheckpointError."""
        key = (layer, expert)
        if key not in self._loading:
            self._free_a_buffer(layer)
            if key in self._queue:
                self._queue.remove(key)
            self._queue.appendleft(key)
            self._start_loads()
        loading = self._loading.pop(key)
        began = time.perf_counter()
        try:
            loading.fetch.wait()
        except BaseException:
            self._free.append(loading.buffer)
            raise
        finally:
            self.stats.wait_s += time.perf_counter() - began
        return ResidentExpert(loading.buffer, loading.fetch.mlp)

    def _free_a_buffer(self, layer: int) -> None:
        """Make sure that a buffer is free; the last resort is to cancel a fetch, one for another layer first."""
        if not self._free and self._stale:
            self._reclaim(self._stale.pop(0))
        if self._free:
            return
        keys = list(reversed(self._loading))
        least = next((key for key in keys if key[0] != layer), keys[0])
        self._cancel(least)
        if least[0] == layer:
            self._queue.append(least)

    def _cancel(self, key: Key) -> None:
        """Cancel a fetch: wait for it and free its buffer."""
        self._reclaim(self._loading.pop(key))

    def _reclaim(self, loading: _LoadingExpert) -> None:
        """Free the buffer of a fetch whose expert is not wanted; that it could not be read does not matter then."""
        try:
            with contextlib.suppress(DsliteError):
                loading.fetch.wait()
        finally:
            self._free.append(loading.buffer)

    def begin_pass(self, layer: int, used: Sequence[int]) -> None:
        """Note that a pass uses these experts of a layer: other fetches for it become resident or stale."""
        self._pass += 1
        wanted = set(used)
        for key in [key for key in self._loading if key[0] == layer and key[1] not in wanted]:
            if len(self._resident[layer]) < self.slots and self._loading[key].fetch.passed():
                self.admit(*key, self.load(*key), tokens=0, last_pass=0)
            else:
                self._stale.append(self._loading.pop(key))
        self._queue = deque(key for key in self._queue if key[0] != layer or key[1] in wanted)

    def count_uses(self, layer: int, hits: list[int], misses: list[int]) -> None:
        """Count the experts that a pass through a layer uses."""
        self.stats.count(layer, hits, misses)
        self._uses.count(layer, [*hits, *misses])

    def load_for_later(self, layer: int, computed: Sequence[int], tokens: Callable[[int], int]) -> None:
        """Fetch the most used of the experts that the host has computed, where it is worth a slot and a buffer is free.

        `tokens` says how many chose an expert.
        """
        expert = self._uses.hottest(layer, computed)
        if self._free and (layer, expert) not in self._loading and self._deserves_slot(layer, expert):
            self.prefetch(layer, [expert])
            loading = self._loading[layer, expert]
            loading.last_pass, loading.tokens = self._pass, tokens(expert)

    def _deserves_slot(self, layer: int, expert: int) -> bool:
        resident = self._resident[layer]
        if len(resident) < self.slots:
            return True
        return self._uses.worth_replacing(layer, expert, self._uses.coldest(layer, resident))

    def begin_host_pass(self, layer: int) -> None:
        """Note that a pass which computes misses in host memory is at a layer: fetches that have ended get slots."""
        self._pass += 1
        self._queue.clear()
        for key in [key for key in self._loading if key[0] == layer and self._loading[key].fetch.passed()]:
            loading = self._loading[key]
            fetched, resident = self.load(*key), self._resident[layer]
            if len(resident) >= self.slots:
                self._free_when_read(resident.pop(self._uses.coldest(layer, resident)).buffer)
            fetched.last_pass, fetched.tokens = loading.last_pass, loading.tokens
            resident[key[1]] = fetched
        self._start_loads()

    def mark_used(self, resident: ResidentExpert, tokens: int) -> None:
        """Note that `tokens` chose a resident expert in this pass."""
        resident.last_pass, resident.tokens = self._pass, tokens

    def admit(
        self, layer: int, expert: int, fetched: ResidentExpert, *, tokens: int, last_pass: int | None = None
    ) -> None:
        """Give a loaded expert, once used, a slot: a free one, or that of the LRU expert unless that was used later."""
        fetched.last_pass, fetched.tokens = self._pass if last_pass is None else last_pass, tokens
        resident = self._resident[layer]
        if len(resident) < self.slots:
            resident[expert] = fetched
        else:
            oldest = _lru(resident)
            if (resident[oldest].last_pass, resident[oldest].tokens) < (fetched.last_pass, fetched.tokens):
                resident[expert], fetched = fetched, resident.pop(oldest)
            self._free_when_read(fetched.buffer)
        self._start_loads()

    def discard(self, fetched: ResidentExpert) -> None:
        """Free the buffer of a loaded expert that is not to have a slot."""
        self._free_when_read(fetched.buffer)

    def _free_when_read(self, buffer: int) -> None:
        """Free a buffer, to be written behind the kernels that are launched so far."""
        self._last_read[buffer] = self.device.mark()
        self._free.append(buffer)

    def cancel_all(self) -> None:
        """End all fetches: a pass ended early."""
        self._queue.clear()
        for key in list(self._loading):
            self._cancel(key)
        while self._stale:
            self._reclaim(self._stale.pop())

    def give_back(self) -> bool:
        """Free the memory of one slot of every layer. False where no fewer than a token needs would be left."""
        block = self.arena.newest_block()
        if self.slots <= self.config.num_experts_per_tok or not block:
            return False
        self.cancel_all()
        self.device.settle()
        self.slots -= 1
        self.stats.slots = self.slots
        gone = set(block)
        self._free = [number for number in self._free if number not in gone]
        for resident in self._resident.values():
            for expert in [expert for expert, one in resident.items() if one.buffer in gone]:
                del resident[expert]
            while len(resident) > self.slots:
                self._free_when_read(resident.pop(_lru(resident)).buffer)
        self.arena.drop(block)
        self.device.settle()
        log.warning("memory is short: %d expert slots per layer are left", self.slots)
        return True


def _lru(resident: dict[int, ResidentExpert]) -> int:
    """The least recently used expert; of several the one that the fewest tokens chose."""
    return min(resident, key=lambda expert: (resident[expert].last_pass, resident[expert].tokens))
