"""An ExpertBank of one layer: experts are computed from slots, from the buffers that they were just loaded into, or in
host memory.
"""

# T tokens  D hidden  K experts per token

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dslite.model.expert_slots import RoutedTokens
from dslite.runtime.weights.expert_outputs import ExpertOutputs, RoutingTable
from dslite.runtime.weights.experts import ExpertCache
from dslite.runtime.weights.slot_step import SlotStep


@dataclass(frozen=True)
class _Pass:
    """A pass through a layer. `on_host` is a host copy of hidden (T, D) where the host computes misses."""

    expert_ids: Tensor
    routing: RoutingTable
    on_host: Tensor | None


class SlotExperts:
    """An ExpertBank over the slots of one layer. A pass raises CheckpointError where an expert cannot be read."""

    def __init__(self, cache: ExpertCache, layer: int) -> None:
        self.cache = cache
        self.layer = layer
        self._expected: _Pass | None = None
        self._step = SlotStep(cache, layer)

    @property
    def addressable(self) -> bool:
        return self._step.addressable

    def begin_step(self, tokens: RoutedTokens) -> None:
        """See model.expert_slots."""
        with self._whole_or_nothing():
            self._step.begin(tokens)

    def finish_step(self, tokens: RoutedTokens) -> None:
        """See model.expert_slots."""
        with self._whole_or_nothing():
            self._step.finish(tokens)

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        """Bring the router's choice to the host, and begin to fetch the missing experts."""
        with self._whole_or_nothing():
            self._begin(hidden, expert_ids)

    def _begin(self, hidden: Tensor, expert_ids: Tensor) -> None:
        cache = self.cache
        computes = hidden.shape[0] < cache.compute_below
        ids, rows = cache.device.to_host(expert_ids, [hidden] if computes else [])
        self._expected = _Pass(expert_ids, RoutingTable.of(ids), rows[0] if computes else None)
        wanted = list(self._expected.routing.bounds)
        if computes:
            cache.begin_host_pass(self.layer)
            return
        cache.begin_pass(self.layer, wanted)
        cache.prefetch(self.layer, wanted)
        if 4 * len(wanted) > 3 * cache.config.n_routed_experts and self.layer + 1 in cache.layers:
            # A chunk that uses most experts here will do so in the next layer: they load while this one is computed.
            # One that uses half of them, such as eight answers at once, would wait for as many that it does not use.
            cache.prefetch(self.layer + 1, range(cache.config.n_routed_experts))

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """hidden (T, D), ids (T, K) and float32 weights (T, K): the weighted sum, (T, D) in float32."""
        with self._whole_or_nothing():
            if self._expected is None or self._expected.expert_ids is not expert_ids:
                self._begin(hidden, expert_ids)
            assert self._expected is not None
            routing, on_host = self._expected.routing, self._expected.on_host
            self._expected = None
            ordered = self.cache.device.to_device(np.stack([routing.positions, routing.ranks.ravel()]))
            outputs = ExpertOutputs(hidden, ordered[0], routing.bounds, expert_ids.shape[1])
            misses = self._compute_hits(routing, outputs)
            if on_host is None:
                self._fetch(misses, outputs)
            elif misses:
                self._compute_on_host(misses, routing, on_host, outputs)
            return outputs.combine(weights.gather(1, ordered[1].view_as(weights)))

    @contextmanager
    def _whole_or_nothing(self) -> Iterator[None]:
        """End all fetches where a pass fails."""
        try:
            yield
        except BaseException:
            self._expected = None
            self.cache.cancel_all()
            raise

    def _compute_hits(self, routing: RoutingTable, outputs: ExpertOutputs) -> list[int]:
        """Compute the experts that are in slots; return the others."""
        resident = self.cache.resident(self.layer)
        hits = [expert for expert in routing.bounds if expert in resident]
        misses = [expert for expert in routing.bounds if expert not in resident]
        self.cache.count_uses(self.layer, hits, misses)
        outputs.compute({expert: resident[expert].mlp for expert in hits})
        for expert in hits:
            self.cache.mark_used(resident[expert], outputs.tokens(expert))
        return misses

    def _fetch(self, misses: list[int], outputs: ExpertOutputs) -> None:
        """Compute the misses as they are loaded."""
        for expert in misses:
            fetched = self.cache.load(self.layer, expert)
            outputs.compute({expert: fetched.mlp})
            self.cache.admit(self.layer, expert, fetched, tokens=outputs.tokens(expert))

    def _compute_on_host(
        self, misses: list[int], routing: RoutingTable, hidden: Tensor, outputs: ExpertOutputs
    ) -> None:
        """Compute the misses in host memory, of hidden (T, D) there, while the device computes the hits."""
        cache, layer = self.cache, self.layer
        here = ExpertOutputs(hidden, torch.from_numpy(routing.positions), routing.bounds, outputs.per_token)
        in_host_memory = {expert: cache.source.in_host_memory(layer, expert) for expert in misses}
        here.compute({expert: mlp for expert, mlp in in_host_memory.items() if mlp is not None})
        cache.stats.computed += len(misses)
        computed = np.concatenate([routing.positions[slice(*routing.bounds[expert])] for expert in misses])
        done = here.flat[torch.from_numpy(computed)]
        outputs.store(cache.device.to_device(computed), cache.device.to_device(done))
        # At most one expert a pass: the copy and the host's products share the bandwidth of host memory.
        cache.load_for_later(layer, misses, outputs.tokens)
