"""The experts of one layer in a recorded step: a table of addresses for the device, and its misses.

The device computes the experts of the table without the host. It begins as soon as the router has chosen, as the host
does with the misses: the ids leave the device before the hits begin, and those are launched by then, so that neither
waits for the other.
"""

# T tokens  D hidden  E experts  K experts per token

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslite.model import decode_cuda
from dslite.model.expert_slots import RoutedTokens
from dslite.model.moe import MLP
from dslite.runtime.device import Brought
from dslite.runtime.weights.expert_outputs import ExpertOutputs, RoutingTable
from dslite.runtime.weights.experts import ExpertCache, ResidentExpert
from dslite.runtime.weights.sources import HostSource


class SlotStep:
    """One layer's table, and the step that is under way."""

    def __init__(self, cache: ExpertCache, layer: int) -> None:
        self._cache, self._layer = cache, layer
        self._table: Tensor | None = None  # the one that was written last
        self._written: dict[int, int] = {}  # expert → the buffer whose addresses the table has
        self._brought: Brought | None = None
        self._computes = False

    @property
    def addressable(self) -> bool:
        source = self._cache.source
        return isinstance(source, HostSource) and source.plain

    def begin(self, tokens: RoutedTokens) -> None:
        cache = self._cache
        self._computes = tokens.count < cache.compute_below
        self._brought = cache.device.bring(tokens.ids, [tokens.normed] if self._computes else [])
        if self._computes:
            cache.begin_host_pass(self._layer)
        self._write_table(tokens.table)

    def _write_table(self, table: Tensor) -> None:
        """Copy the addresses to the device where a slot has another expert than before."""
        resident = self._cache.resident(self._layer)
        now = {expert: one.buffer for expert, one in resident.items()}  # no number of a buffer is used twice
        if table is not self._table or now != self._written:
            lines = addresses({expert: one.mlp for expert, one in resident.items()}, len(table))
            self._cache.device.put(table, lines)
            self._table, self._written = table, now

    def finish(self, tokens: RoutedTokens) -> None:
        assert self._brought is not None
        cache, layer = self._cache, self._layer
        ids, rows = self._brought()
        self._brought = None
        chosen = ids[: tokens.count, : tokens.chosen]
        uses = dict(zip(*(part.tolist() for part in np.unique(chosen, return_counts=True)), strict=True))
        hits = [expert for expert in uses if expert in self._written]
        misses = [expert for expert in uses if expert not in self._written]
        cache.count_uses(layer, hits, misses)
        if not self._computes:
            cache.begin_pass(layer, list(uses))
        resident = cache.resident(layer)
        for expert in hits:
            cache.mark_used(resident[expert], uses[expert])
        if misses and self._computes:
            self._compute(misses, chosen, rows[0], tokens)
            cache.load_for_later(layer, misses, uses.__getitem__)
        elif misses:
            self._fetch(misses, uses, tokens)

    def _compute(self, misses: list[int], chosen: NDArray[np.int64], normed: Tensor, tokens: RoutedTokens) -> None:
        """Compute the misses on the host, of normed (T, D) there, while the device computes the hits."""
        cache = self._cache
        missed = np.isin(chosen, misses)
        routing = RoutingTable.of(chosen[missed][:, None])
        inputs = normed[torch.from_numpy(missed.nonzero()[0])]
        outputs = ExpertOutputs(inputs, torch.from_numpy(routing.positions), routing.bounds, 1)
        in_host_memory = {expert: cache.source.in_host_memory(self._layer, expert) for expert in misses}
        outputs.compute({expert: mlp for expert, mlp in in_host_memory.items() if mlp is not None})
        of_first, copies = int(missed[0].sum()), len(tokens.ids) - tokens.count
        done = outputs.flat.float()
        done = torch.cat([done, *[done[:of_first]] * copies])
        cache.device.put(tokens.arrived[: len(done)], done)
        cache.stats.computed += len(misses)

    def _fetch(self, misses: list[int], uses: dict[int, int], tokens: RoutedTokens) -> None:
        """Fetch the misses, as many together as there are buffers, and have the device compute them."""
        cache, layer = self._cache, self._layer
        cache.prefetch(layer, misses)
        while misses:
            loading = set(cache.loading(layer))
            group = [expert for expert in misses if expert in loading] or misses[:1]
            misses = [expert for expert in misses if expert not in group]
            fetched: dict[int, ResidentExpert] = {}
            try:
                for expert in group:
                    fetched[expert] = cache.load(layer, expert)
                lines = addresses({expert: one.mlp for expert, one in fetched.items()}, len(tokens.fetched))
                cache.device.put(tokens.fetched, lines)
                tokens.compute_fetched()
            except BaseException:
                for one in fetched.values():
                    cache.discard(one)
                raise
            for expert, one in fetched.items():
                cache.admit(layer, expert, one, tokens=uses[expert])


def addresses(experts: Mapping[int, MLP], count: int) -> Tensor:
    """A table (count, 4) int64 of experts on the device, zero for the others: triton_experts says what is in it."""
    lines = torch.zeros(count, 4, dtype=torch.int64)
    for expert, mlp in experts.items():
        down = mlp.tensors[2]
        lines[expert] = torch.tensor([*map(decode_cuda.address, mlp.tensors), down.stride(0)])
    return lines
