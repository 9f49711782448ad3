"""One layer's routed experts, computed from slots, from buffers through which they pass, or where they lie."""

# T tokens  D hidden  K experts per token

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

    A token's choices are put in ascending order of experts; `places` (T·K) lists them expert by expert, and
    `bounds[expert]` says which stretch is whose. `ranks` (T, K) is the order within each token.
    """

    places: NDArray[np.int64]
    ranks: NDArray[np.int64]
    bounds: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, expert_ids: NDArray[np.int64]) -> "RoutingTable":
        """From ids (T, K)."""
        ranks = expert_ids.argsort(axis=1, kind="stable")
        flat = np.take_along_axis(expert_ids, ranks, axis=1).ravel()
        places = flat.argsort(kind="stable")
        used, starts = np.unique(flat[places], return_index=True)
        ends = [*starts[1:].tolist(), len(flat)]
        spans = zip(starts.tolist(), ends, strict=True)
        return cls(places, ranks, dict(zip(used.tolist(), spans, strict=True)))


@dataclass(frozen=True)
class _Pass:
    """What a pass through a layer wants. `rows` is the host's copy of hidden (T, D) where the host computes misses."""

    expert_ids: Tensor
    choice: RoutingTable
    rows: Tensor | None


class SlotExperts:
    """An ExpertBank over the slots of one layer. Every pass raises CheckpointError where an expert cannot be read."""

    def __init__(self, cache: ExpertCache, layer: int) -> None:
        self.cache = cache
        self.layer = layer
        self._expected: _Pass | None = None

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        """Read the choice, and begin to fetch what is missing."""
        cache = self.cache
        computes = hidden.shape[0] < cache.compute_below
        ids, rows = cache.device.to_host(expert_ids, [hidden] if computes else [])
        self._expected = _Pass(expert_ids, RoutingTable.of(ids), rows[0] if computes else None)
        wanted = list(self._expected.choice.bounds)
        if computes:
            cache.begin_inserting(self.layer)
            return
        cache.begin(self.layer, wanted)
        cache.want(self.layer, wanted)
        if 4 * len(wanted) > 3 * cache.config.n_routed_experts and self.layer + 1 in cache.layers:
            # A chunk that uses most experts here will do so in the next layer: they come while this one is computed.
            # One that uses half of them, such as eight answers at once, would wait for as many that it does not want.
            cache.want(self.layer + 1, range(cache.config.n_routed_experts))

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """hidden (T, D), ids (T, K) and float32 weights (T, K): the weighted sum, (T, D) in float32."""
        try:
            if self._expected is None or self._expected.expert_ids is not expert_ids:
                self.expect(hidden, expert_ids)
            assert self._expected is not None
            choice, rows = self._expected.choice, self._expected.rows
            self._expected = None
            ordered = self.cache.device.to_device(np.stack([choice.places, choice.ranks.ravel()]))
            outputs = _Outputs(hidden, ordered[0], choice.bounds, expert_ids.shape[1])
            misses = self._compute_hits(choice, outputs)
            if rows is None:
                self._fetch(misses, outputs)
            elif misses:
                self._compute_where_they_lie(misses, choice, rows, outputs)
            return outputs.combine(weights.gather(1, ordered[1].view_as(weights)))
        except BaseException:
            self._expected = None
            self.cache.abandon()
            raise

    def _compute_hits(self, choice: RoutingTable, outputs: "_Outputs") -> list[int]:
        """Compute the experts that are in slots; return the others."""
        held = self.cache.held(self.layer)
        hits = [expert for expert in choice.bounds if expert in held]
        misses = [expert for expert in choice.bounds if expert not in held]
        self.cache.stats.count(self.layer, hits, misses)
        outputs.compute({expert: held[expert].mlp for expert in hits})
        for expert in hits:
            self.cache.touch(held[expert], outputs.rows(expert))
        return misses

    def _fetch(self, misses: list[int], outputs: "_Outputs") -> None:
        """Compute the misses as they arrive."""
        for expert in misses:
            fetched = self.cache.take(self.layer, expert)
            outputs.compute({expert: fetched.mlp})
            self.cache.settle_in(self.layer, expert, fetched, rows=outputs.rows(expert))

    def _compute_where_they_lie(
        self, misses: list[int], choice: RoutingTable, rows: Tensor, outputs: "_Outputs"
    ) -> None:
        """Compute the misses on the host, while the device is at the hits. rows (T, D)."""
        cache, layer = self.cache, self.layer
        here = _Outputs(rows, torch.from_numpy(choice.places), choice.bounds, outputs.per_token)
        lying = {expert: cache.source.where_it_lies(layer, expert) for expert in misses}
        here.compute({expert: mlp for expert, mlp in lying.items() if mlp is not None})
        cache.stats.computed += len(misses)
        mine = np.concatenate([choice.places[slice(*choice.bounds[expert])] for expert in misses])
        done = here.flat[torch.from_numpy(mine)]
        outputs.place(cache.device.to_device(mine), cache.device.to_device(done))
        # One a pass: copies and the host's computing share the host memory's bandwidth.
        cache.insert(layer, misses[0], outputs.rows(misses[0]))


class _Outputs:
    """The output of every choice in its place, so that the order of computing leaves no trace in their sum."""

    def __init__(self, hidden: Tensor, places: Tensor, bounds: dict[int, tuple[int, int]], per_token: int) -> None:
        self._hidden, self._places, self._bounds, self.per_token = hidden, places, bounds, per_token
        count, width = hidden.shape
        dtype = torch.float32 if count * per_token <= MOST_TOKENS else hidden.dtype
        self.flat = torch.empty(count * per_token, width, dtype=dtype, device=hidden.device)  # (T·K, D)

    def rows(self, expert: int) -> int:
        start, end = self._bounds[expert]
        return end - start

    def compute(self, experts: dict[int, MLP]) -> None:
        """Some experts, each for the tokens that chose it."""
        group: dict[int, MLP] = {}
        for expert, mlp in experts.items():
            if sum(self.rows(one) for one in group) + self.rows(expert) > MOST_TOKENS:
                self._compute_group(group)
                group = {}
            group[expert] = mlp
        self._compute_group(group)

    def _compute_group(self, experts: dict[int, MLP]) -> None:
        """In one call of the compiled kernel, in float32, where it takes them; else one by one."""
        if not experts:
            return
        places = torch.cat([self._places_of(expert) for expert in experts])
        counts = [self.rows(expert) for expert in experts]
        rows = self._hidden[places // self.per_token]
        if suits_rows(rows):
            numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[:, None]
            table = ExpertTable([mlp.matrices for mlp in experts.values()])
            out = kernels.weighted_experts(rows, numbers, torch.ones(len(rows), 1), table)
            if out is not None:
                self.place(places, out)
                return
        for mlp, some, where in zip(experts.values(), rows.split(counts), places.split(counts), strict=True):
            self.place(where, mlp.reference(some))

    def _places_of(self, expert: int) -> Tensor:
        start, end = self._bounds[expert]
        return self._places[start:end]

    def place(self, places: Tensor, values: Tensor) -> None:
        self.flat.index_copy_(0, places, values.to(self.flat.dtype))

    def combine(self, weights: Tensor) -> Tensor:
        """The sum (T, D) in float32 by weights (T, K) in ascending order of experts."""
        parts = self.flat.unflatten(0, weights.shape)
        total: Tensor = parts[:, 0].float() * weights[:, 0, None]
        for rank in range(1, weights.shape[1]):
            total += parts[:, rank].float() * weights[:, rank, None]
        return total
