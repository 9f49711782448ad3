"""Routed experts in slots on the compute device, over a slower source.

A buffer of the arena is a slot of a layer, or spare. A missing expert is brought into a spare buffer; once it has been
used, the buffer becomes its slot and that of the least recently used expert becomes spare: nothing is copied twice. On
a device that runs ahead of the host a buffer is written only after the event behind the last computation that reads it.

Misses whose source lies in host memory may be computed there instead, while the device computes the hits; in both cases
each expert's output lands in its place before all are added in one fixed order. What is in which slot never shows in
the result.
"""

# T tokens  D hidden  K experts per token

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dslite.model.config import ModelConfig
from dslite.model.errors import DsliteError
from dslite.model.moe import MLP
from dslite.runtime.device import ComputeDevice, Event, is_out_of_memory
from dslite.runtime.errors import OutOfMemoryError
from dslite.runtime.weights.arena import Arena
from dslite.runtime.weights.expert_stats import ExpertStats
from dslite.runtime.weights.sources import ExpertSource, Fetch

log = logging.getLogger(__name__)
Key = tuple[int, int]  # layer, expert
Made = TypeVar("Made")


@dataclass
class Held:
    """An expert in a buffer. `rows` tokens chose it when it was last used, in pass `used`."""

    buffer: int
    mlp: MLP
    used: int = 0
    rows: int = 0


@dataclass
class _Coming:
    """An expert on its way into a buffer, and its last use where it was computed in the meantime."""

    buffer: int
    fetch: Fetch
    used: int = 0
    rows: int = 0


class ExpertCache:
    """The slots of all layers, the spare buffers, and what is on its way into them."""

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
        """`compute_below`: passes of fewer tokens have their misses computed where they lie, if the source can."""
        self.config, self.device, self.source = config, device, source
        self.slots, self.compute_below = slots, compute_below
        self.layers = range(config.first_k_dense_replace, config.num_hidden_layers)
        self.stats = ExpertStats(slots, config.n_routed_experts)
        self.arena = Arena(device, slot_bytes)
        self._free: list[int] = self.arena.grow(spare)
        for _ in range(slots):
            self._free += self.arena.grow(len(self.layers))
        self._held: dict[int, dict[int, Held]] = {layer: {} for layer in self.layers}
        self._coming: dict[Key, _Coming] = {}
        self._wanted: deque[Key] = deque()
        self._stale: list[_Coming] = []  # on their way, and wanted no more
        self._last_read: dict[int, Event] = {}  # buffer → the event behind which it may be written
        self._pass = 0

    def held(self, layer: int) -> dict[int, Held]:
        """The experts in a layer's slots."""
        return self._held[layer]

    def want(self, layer: int, experts: Sequence[int]) -> None:
        """Begin to bring experts of a layer, in this order behind those already wanted, as spare buffers allow."""
        for expert in experts:
            key = (layer, expert)
            if expert not in self._held[layer] and key not in self._coming and key not in self._wanted:
                self._wanted.append(key)
        self._pump()

    def _pump(self) -> None:
        for coming in [coming for coming in self._stale if coming.fetch.passed()]:
            self._stale.remove(coming)
            self._discard(coming)
        while self._free and self._wanted:
            layer, expert = self._wanted.popleft()
            number = self._free.pop()
            fetch = self.source.fetch(layer, expert, self.arena.buffer(number), self._last_read.pop(number, None))
            self._coming[layer, expert] = _Coming(number, fetch)
            self.stats.bytes_moved += self.source.nbytes_moved

    def take(self, layer: int, expert: int) -> Held:
        """A missing expert, readable by what is computed from now on. Raises CheckpointError."""
        key = (layer, expert)
        if key not in self._coming:
            self._make_way(layer)
            if key in self._wanted:
                self._wanted.remove(key)
            self._wanted.appendleft(key)
            self._pump()
        coming = self._coming.pop(key)
        began = time.perf_counter()
        try:
            coming.fetch.wait()
        except BaseException:
            self._free.append(coming.buffer)
            raise
        finally:
            self.stats.wait_s += time.perf_counter() - began
        return Held(coming.buffer, coming.fetch.mlp)

    def _make_way(self, layer: int) -> None:
        """Have a spare buffer, if need be by giving up what was brought ahead for another layer."""
        if not self._free and self._stale:
            self._discard(self._stale.pop(0))
        if self._free:
            return
        keys = list(reversed(self._coming))
        least = next((key for key in keys if key[0] != layer), keys[0])
        self._drop(least)
        if least[0] == layer:
            self._wanted.append(least)

    def _drop(self, key: Key) -> None:
        """Give up an expert that is on its way."""
        self._discard(self._coming.pop(key))

    def _discard(self, coming: _Coming) -> None:
        """Have a buffer back whose expert nobody wants: whether it would have arrived does not matter."""
        with contextlib.suppress(DsliteError):
            coming.fetch.wait()
        self._free.append(coming.buffer)

    def begin(self, layer: int, used: Sequence[int]) -> None:
        """A pass is at a layer and wants these experts: what was brought ahead in vain is waited for no longer."""
        self._pass += 1
        wanted = set(used)
        for key in [key for key in self._coming if key[0] == layer and key[1] not in wanted]:
            if len(self._held[layer]) < self.slots and self._coming[key].fetch.passed():
                self.settle_in(*key, self.take(*key), rows=0, used=0)
            else:
                self._stale.append(self._coming.pop(key))
        self._wanted = deque(key for key in self._wanted if key[0] != layer or key[1] in wanted)

    def insert(self, layer: int, expert: int, rows: int) -> None:
        """An expert was computed where it lies: bring it into a slot beside the computing, if a buffer is spare."""
        if self._free and (layer, expert) not in self._coming:
            self.want(layer, [expert])
            coming = self._coming[layer, expert]
            coming.used, coming.rows = self._pass, rows

    def begin_inserting(self, layer: int) -> None:
        """A pass that computes misses where they lie is at a layer: what was inserted and has arrived gets its slot."""
        self._pass += 1
        self._wanted.clear()
        for key in [key for key in self._coming if key[0] == layer]:
            if self._coming[key].fetch.passed():
                used, rows = self._coming[key].used, self._coming[key].rows
                self.settle_in(*key, self.take(*key), used=used, rows=rows)

    def touch(self, held: Held, rows: int) -> None:
        """An expert in a slot was used by so many tokens."""
        held.used, held.rows = self._pass, rows

    def settle_in(self, layer: int, expert: int, fetched: Held, *, rows: int, used: int | None = None) -> None:
        """A fetched expert has been used: it gets the slot of the least recently and least used one, if worth more."""
        fetched.used, fetched.rows = self._pass if used is None else used, rows
        held = self._held[layer]
        if len(held) < self.slots:
            held[expert] = fetched
        else:
            oldest = _least(held)
            if (held[oldest].used, held[oldest].rows) < (fetched.used, fetched.rows):
                held[expert], fetched = fetched, held.pop(oldest)
            self._release(fetched.buffer)
        self._pump()

    def _release(self, buffer: int) -> None:
        """A buffer may be written once what is launched so far has been computed."""
        self._last_read[buffer] = self.device.mark()
        self._free.append(buffer)

    def abandon(self) -> None:
        """A pass ended early: wait for what is on its way, and want nothing any more."""
        self._wanted.clear()
        for key in list(self._coming):
            self._drop(key)
        while self._stale:
            self._discard(self._stale.pop())

    def give_back(self) -> bool:
        """One slot less in every layer, and its memory to the device. False at the fewest that a token needs."""
        block = self.arena.newest_block()
        if self.slots <= self.config.num_experts_per_tok or not block:
            return False
        self.abandon()
        self.device.settle()
        self.slots -= 1
        self.stats.slots = self.slots
        gone = set(block)
        self._free = [number for number in self._free if number not in gone]
        for held in self._held.values():
            for expert in [expert for expert, one in held.items() if one.buffer in gone]:
                del held[expert]
            while len(held) > self.slots:
                self._release(held.pop(_least(held)).buffer)
        self.arena.drop(block)
        self.device.settle()
        log.warning("memory is short: %d expert slots per layer are left", self.slots)
        return True


def with_room(make: Callable[[], Made], cache: ExpertCache | None, what: str) -> Made:
    """What `make` allocates, after giving slots back as long as memory is short. Raises OutOfMemoryError."""
    while True:
        try:
            return make()
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            told = OutOfMemoryError.of(error, what)
        if cache is None or not cache.give_back():
            raise told


def _least(held: dict[int, Held]) -> int:
    """The expert that was used longest ago, of those the one that the fewest tokens chose."""
    return min(held, key=lambda expert: (held[expert].used, held[expert].rows))
