"""The mixture of experts: router, routed and shared experts (DeepSeek-V2 paper, section 2.2, eq. 20 to 22)."""

# T tokens  D hidden  E experts  K experts per token  G groups

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model import kernels
from dslite.model.config import ModelConfig
from dslite.model.kernels import ExpertTable, gpu
from dslite.model.quantized import QuantizedMatrix, Weight, plain


@dataclass(frozen=True)
class MLP:
    """down(silu(gate(x)) · up(x)): the dense layer, the shared experts and each routed expert."""

    gate_proj: Weight
    up_proj: Weight
    down_proj: Weight

    @classmethod
    def build(cls, take: Callable[[str], Weight]) -> "MLP":
        return cls(take("gate_proj"), take("up_proj"), take("down_proj"))

    @property
    def matrices(self) -> tuple[Weight, Weight, Weight]:
        return self.gate_proj, self.up_proj, self.down_proj

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The matrices of an MLP that is not quantized."""
        return plain(self.gate_proj), plain(self.up_proj), plain(self.down_proj)

    @property
    def quantized(self) -> bool:
        return any(isinstance(matrix, QuantizedMatrix) for matrix in self.matrices)

    @cached_property
    def table(self) -> ExpertTable:
        return ExpertTable([self.matrices])

    def __call__(self, hidden: Tensor) -> Tensor:
        out = kernels.mlp(hidden, self.table)
        return self.reference(hidden) if out is None else out

    def reference(self, hidden: Tensor) -> Tensor:
        """The same by torch's products: the reference of the kernel."""
        gate, up, down = (kernels.dense(matrix, hidden.dtype) for matrix in self.matrices)
        return F.linear(F.silu(F.linear(hidden, gate)) * F.linear(hidden, up), down)


class ExpertBank(Protocol):
    """The routed experts of one layer: resident, or in slots over a slower memory."""

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        """Announce the next call. The shared experts are computed in between, while missing experts are fetched."""
        ...

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """hidden (T, D), ids (T, K) and float32 weights (T, K): the weighted sum of the experts, (T, D) in float32."""
        ...


@dataclass(frozen=True)
class Gate:
    """The router: K experts for each token. Everything in float32, because near ties decide which expert is used."""

    weight: Tensor
    config: ModelConfig

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (T, D): expert ids (T, K) and their weights (T, K) float32, not renormalised."""
        config = self.config
        scores = F.linear(hidden.float(), self.weight.float()).softmax(dim=-1)
        if config.topk_method == "group_limited_greedy":
            scores = _best_groups_only(scores, config.n_group, config.topk_group)
        weights, expert_ids = scores.topk(config.num_experts_per_tok, dim=-1)
        return expert_ids, weights * config.routed_scaling_factor


def _best_groups_only(scores: Tensor, n_group: int, topk_group: int) -> Tensor:
    """Zero the scores outside the groups whose best expert is among the best. Paper, section 2.2.2."""
    groups: Tensor = scores.unflatten(-1, (n_group, -1))  # (T, G, E/G)
    best = groups.amax(-1).topk(topk_group, dim=-1).indices
    keep = torch.zeros(groups.shape[:2], dtype=torch.bool, device=scores.device).scatter(1, best, True)
    return groups.masked_fill(~keep[..., None], 0.0).flatten(1)


@dataclass(frozen=True)
class ResidentExperts:
    """All experts of a layer on the compute device: the plain bank, and the reference of every other."""

    experts: Sequence[MLP]

    @cached_property
    def table(self) -> ExpertTable:
        return ExpertTable([expert.matrices for expert in self.experts])

    @cached_property
    def addresses(self) -> Tensor:
        """Where the experts lie on a GPU, for the kernels that read addresses: (E, 4)."""
        from dslite.model.kernels import triton_experts

        return triton_experts.address_table([expert.tensors for expert in self.experts], None)

    @cached_property
    def _addressable(self) -> bool:
        """Whether the kernels that read addresses can compute the experts as they lie."""
        return all(not one.quantized and all(matrix.is_contiguous() for matrix in one.tensors) for one in self.experts)

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        """Nothing to fetch."""

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        if gpu.usable(hidden.device) and self._addressable:
            width = self.experts[0].tensors[0].shape[0]
            return gpu.grouped_experts(hidden, expert_ids, weights, self.addresses, width)
        out = kernels.weighted_experts(hidden, expert_ids, weights, self.table)
        return self.reference(hidden, expert_ids, weights) if out is None else out

    def reference(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """The same expert by expert: the reference of the kernel."""
        total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        for expert, rows, row_weights in by_expert(expert_ids, weights, len(self.experts)):
            out = self.experts[expert](hidden if hidden.shape[0] == 1 else hidden[rows])
            total.index_add_(0, rows, out.float() * row_weights[:, None])
        return total


def by_expert(expert_ids: Tensor, weights: Tensor, n_experts: int) -> list[tuple[int, Tensor, Tensor]]:
    """Group router choices (T, K): for each expert in use its number, the tokens that chose it, and their weights."""
    order = expert_ids.flatten().argsort(stable=True)
    rows = order // expert_ids.shape[1]
    sorted_weights = weights.flatten()[order]
    counts = torch.bincount(expert_ids.flatten(), minlength=n_experts).tolist()
    groups = zip(rows.split(counts), sorted_weights.split(counts), strict=True)
    return [(expert, *group) for expert, group in enumerate(groups) if counts[expert]]


@dataclass(frozen=True)
class MoE:
    """Routed and shared experts of one layer."""

    gate: Gate
    experts: ExpertBank
    shared_experts: MLP | None

    @cached_property
    def expert_counts(self) -> Tensor:
        """How often tokens chose each expert, (E,) int64; counted on the CPU only, where it costs nothing."""
        with torch.inference_mode(False):  # a tensor made in inference mode could only be written there
            return torch.zeros(self.gate.config.n_routed_experts, dtype=torch.int64)

    def __call__(self, hidden: Tensor) -> Tensor:
        expert_ids, weights = self.gate(hidden)
        if expert_ids.device.type == "cpu":
            self.expert_counts.add_(torch.bincount(expert_ids.flatten(), minlength=len(self.expert_counts)))
        return self.combine(hidden, expert_ids, weights)

    def combine(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """The sum of the routed and the shared experts of hidden (T, D): (T, D). Paper, eq. 20."""
        self.experts.expect(hidden, expert_ids)
        shared = None if self.shared_experts is None else self.shared_experts(hidden)
        routed: Tensor = self.experts(hidden, expert_ids, weights).to(hidden.dtype)
        return routed if shared is None else routed + shared
