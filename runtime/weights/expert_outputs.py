"""Which tokens chose which expert, and the output of each choice at its place."""

# T tokens  D hidden  K experts per token

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dslite.model import kernels
from dslite.model.kernels.native import MOST_TOKENS, ExpertTable, suits_rows
from dslite.model.moe import MLP


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


class ExpertOutputs:
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
