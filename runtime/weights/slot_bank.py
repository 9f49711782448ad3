"""An ExpertBank of one layer: experts are computed from slots, from the buffers that they were just loaded into, or in
host memory.
"""

# T tokens  D hidden  K experts per token

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslite.model import kernels
from dslite.model.kernels.native import MOST_TOKENS, ExpertTable, suits_rows
from dslite.model.moe import MLP
from dslite.runtime.weights.experts import ExpertCache


@dataclass(frozen=True)
class RoutingTable:
    """Which tokens chose which expert, on the host.

    The K choices of a token are numbered in ascending order of experts, and all choices token by token. `positions`
    (T·K) lists these numbers expert by expert: those of an expert are positions[slice(*bounds[expert])]. `ranks` (T, K)
    is the order in which each token's choices are numbered.
    """

    positions: NDArray[np.int64]
    ranks: NDArray[np.int64]
    bounds: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, expert_ids: NDArray[np.int64]) -> "RoutingTable":
        """From ids (T, K)."""
        ranks = expert_ids.argsort(axis=1, kind="stable")
        flat = np.take_along_axis(expert_ids, ranks, axis=1).ravel()
        positions = flat.argsort(kind="stable")
        used, starts = np.unique(flat[positions], return_index=True)
        ends = [*starts[1:].tolist(), len(flat)]
        spans = zip(starts.tolist(), ends, strict=True)
        return cls(positions, ranks, dict(zip(used.tolist(), spans, strict=True)))


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
            outputs = _Outputs(hidden, ordered[0], routing.bounds, expert_ids.shape[1])
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

    def _compute_hits(self, routing: RoutingTable, outputs: "_Outputs") -> list[int]:
        """Compute the experts that are in slots; return the others."""
        resident = self.cache.resident(self.layer)
        hits = [expert for expert in routing.bounds if expert in resident]
        misses = [expert for expert in routing.bounds if expert not in resident]
        self.cache.count_uses(self.layer, hits, misses)
        outputs.compute({expert: resident[expert].mlp for expert in hits})
        for expert in hits:
            self.cache.mark_used(resident[expert], outputs.tokens(expert))
        return misses

    def _fetch(self, misses: list[int], outputs: "_Outputs") -> None:
        """Compute the misses as they are loaded."""
        for expert in misses:
            fetched = self.cache.load(self.layer, expert)
            outputs.compute({expert: fetched.mlp})
            self.cache.admit(self.layer, expert, fetched, tokens=outputs.tokens(expert))

    def _compute_on_host(self, misses: list[int], routing: RoutingTable, hidden: Tensor, outputs: "_Outputs") -> None:
        """Compute the misses in host memory, of hidden (T, D) there, while the device computes the hits."""
        cache, layer = self.cache, self.layer
        here = _Outputs(hidden, torch.from_numpy(routing.positions), routing.bounds, outputs.per_token)
        in_host_memory = {expert: cache.source.in_host_memory(layer, expert) for expert in misses}
        here.compute({expert: mlp for expert, mlp in in_host_memory.items() if mlp is not None})
        cache.stats.computed += len(misses)
        computed = np.concatenate([routing.positions[slice(*routing.bounds[expert])] for expert in misses])
        done = here.flat[torch.from_numpy(computed)]
        outputs.store(cache.device.to_device(computed), cache.device.to_device(done))
        # At most one expert a pass: the copy and the host's products share the bandwidth of host memory.
        cache.load_for_later(layer, misses, outputs.tokens)


class _Outputs:
    """The output of every choice at its position, so that the order of computing does not change the sum."""

    def __init__(self, hidden: Tensor, positions: Tensor, bounds: dict[int, tuple[int, int]], per_token: int) -> None:
        self._hidden, self._positions, self._bounds, self.per_token = hidden, positions, bounds, per_token
        count, width = hidden.shape
        dtype = torch.float32 if count * per_token <= MOST_TOKENS else hidden.dtype
        self.flat = torch.empty(count * per_token, width, dtype=dtype, device=hidden.device)  # (T·K, D)

    def tokens(self, expert: int) -> int:
        start, end = self._bounds[expert]
        return end - start

    def compute(self, experts: dict[int, MLP]) -> None:
        """Some experts, each for the tokens that chose it."""
        group: dict[int, MLP] = {}
        for expert, mlp in experts.items():
            if sum(self.tokens(one) for one in group) + self.tokens(expert) > MOST_TOKENS:
                self._compute_group(group)
                group = {}
            group[expert] = mlp
        self._compute_group(group)

    def _compute_group(self, experts: dict[int, MLP]) -> None:
        """In one call of the compiled kernel, in float32, where it takes them; else one by one."""
        if not experts:
            return
        positions = torch.cat([self._positions_of(expert) for expert in experts])
        counts = [self.tokens(expert) for expert in experts]
        rows = self._hidden[positions // self.per_token]
        if suits_rows(rows):
            numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
            table = ExpertTable([mlp.matrices for mlp in experts.values()])
            out = kernels.weighted_experts(rows, numbers, torch.ones(len(rows), 1), table)
            if out is not None:
                self.store(positions, out)
                return
        for mlp, inputs, at in zip(experts.values(), rows.split(counts), positions.split(counts), strict=True):
            self.store(at, mlp.reference(inputs))

    def _positions_of(self, expert: int) -> Tensor:
        start, end = self._bounds[expert]
        return self._positions[start:end]

    def store(self, positions: Tensor, values: Tensor) -> None:
        self.flat.index_copy_(0, positions, values.to(self.flat.dtype))

    def combine(self, weights: Tensor) -> Tensor:
        """The sum (T, D) in float32 by weights (T, K) in ascending order of experts."""
        parts = self.flat.unflatten(0, weights.shape)
        total: Tensor = parts[:, 0].float() * weights[:, 0, None]
        for rank in range(1, weights.shape[1]):
            total += parts[:, rank].float() * weights[:, rank, None]
        return total
