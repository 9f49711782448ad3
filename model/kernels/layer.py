"""Decoder layers for few tokens in one call of the compiled library.

Between the large products of a token are some eighty small operations. Called one by one they take a tenth of the time
of a layer, because the weights that are read in between evict their data from the processor's caches.
"""

# T tokens  D hidden  K experts per token  S cached tokens  C latent  R rope

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.kernels import native
from dslite.model.kernels.native import ExpertTable
from dslite.model.kernels.structs import Layer, MatrixAddress, Step
from dslite.model.quantized import QuantizedMatrix, Weight

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of a layer. Names are the Hub's; None where a model has no such tensor.

    Projections and experts are all published or all quantized; kv_b_proj is published, or dequantized. `experts` None:
    the routed experts are computed elsewhere. `shared`: shared experts, or a dense layer's MLP. `expert_counts`
    (experts,) int64 counts how often each was chosen.
    """

    input_layernorm: Tensor
    q_a_proj: Weight | None
    q_a_layernorm: Tensor | None
    q_proj: Weight
    kv_a_proj_with_mqa: Weight
    kv_a_layernorm: Tensor
    kv_b_proj: Tensor
    o_proj: Weight
    post_attention_layernorm: Tensor
    gate: Tensor | None
    experts: ExpertTable | None
    shared: ExpertTable | None
    expert_counts: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether the kernel computes the whole layer, routed experts included."""
        return self.gate is None or self.experts is not None


@dataclass(frozen=True)
class RoutingResult:
    """A layer up to its routed experts: hidden states behind attention (T, D), the experts' input, the routing."""

    hidden: Tensor
    normed: Tensor
    expert_ids: Tensor
    weights: Tensor


class TokenBatch:
    """The latent caches of a batch of tokens, which may belong to different sequences."""

    def __init__(self, spans: Sequence[tuple[Tensor, int]]) -> None:
        """For each span of new tokens the entries of all layers (layers, S, C+R), new ones last, and their count."""
        self._spans = spans
        self.tokens = sum(count for _, count in spans)
        self.lengths = (_SIZE * self.tokens)(
            *(rows.shape[1] - count + place + 1 for rows, count in spans for place in range(count))
        )

    def addresses(self, first: int, count: int) -> "ctypes.Array[ctypes.c_void_p]":
        """For layers from `first` on, and in each for every token, the address of its sequence's first entry."""
        return (_POINTER * (count * self.tokens))(
            *(
                rows.data_ptr() + layer * rows.stride(0) * rows.element_size()
                for layer in range(first, first + count)
                for rows, count_here in self._spans
                for _ in range(count_here)
            )
        )


class LayerRun:
    """Neighbouring layers that one call computes, their addresses collected once."""

    def __init__(self, config: ModelConfig, first: int, tensors: Sequence[LayerTensors], latent_eps: float) -> None:
        self.first, self.count = first, len(tensors)
        self._config = config
        self._tensors = tensors  # an address does not keep its tensor alive
        self.suits = all(_suits(config, some) for some in tensors)
        self._whole = tensors[0].whole
        # A tensor on another device, or one that only has a shape, is never asked for its address.
        usable = tensors if self.suits else ()
        self._layers = (Layer * len(usable))(*(_layer(config, some, latent_eps) for some in usable))

    @classmethod
    def of(cls, config: ModelConfig, tensors: Sequence[LayerTensors], *, latent_eps: float) -> list["LayerRun"]:
        """All layers, in the longest runs: a layer whose routed experts are elsewhere ends a run behind its router."""
        runs: list[list[LayerTensors]] = []
        for before, some in zip([None, *tensors], tensors, strict=False):
            if before is not None and before.whole and some.whole:
                runs[-1].append(some)
            else:
                runs.append([some])
        starts = itertools.accumulate((len(run) for run in runs), initial=0)
        return [cls(config, first, run, latent_eps) for first, run in zip(starts, runs, strict=False)]

    def __call__(
        self, products: native.NativeProducts, hidden: Tensor, factors: Tensor, rows: TokenBatch
    ) -> Tensor | RoutingResult:
        """hidden (T, D) and rotation factors (T, R/2) complex64: the last layer's output (T, D), or a RoutingResult
        where the routed experts are elsewhere. The entries of the tokens are written.
        """
        out = torch.empty_like(hidden)
        addresses = rows.addresses(self.first, self.count)
        step = Step(
            x=hidden.data_ptr(),
            factors=factors.data_ptr(),
            entries=ctypes.addressof(addresses),
            lengths=ctypes.addressof(rows.lengths),
            tokens=rows.tokens,
            out=out.data_ptr(),
        )
        if self._whole:
            products.layers(self._layers, step)
            return out
        chosen = self._config.num_experts_per_tok
        choice = RoutingResult(
            out,
            torch.empty_like(hidden),
            torch.empty(rows.tokens, chosen, dtype=torch.int64),
            torch.empty(rows.tokens, chosen, dtype=torch.float32),
        )
        step.normed, step.ids = choice.normed.data_ptr(), choice.expert_ids.data_ptr()
        step.weights = choice.weights.data_ptr()
        products.layers(self._layers, step)
        return choice


def _layer(config: ModelConfig, tensors: LayerTensors, latent_eps: float) -> Layer:
    gate, experts = tensors.gate, tensors.experts
    return Layer(
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        value=config.v_head_dim,
        latent=config.kv_lora_rank,
        query_rank=0 if tensors.q_a_proj is None else config.q_lora_rank,
        eps=config.rms_norm_eps,
        latent_eps=latent_eps,
        scale=config.softmax_scale,
        input_norm=_address(tensors.input_layernorm),
        q_a_norm=_address(tensors.q_a_layernorm),
        kv_a_norm=_address(tensors.kv_a_layernorm),
        kv_b=_address(tensors.kv_b_proj),
        post_norm=_address(tensors.post_attention_layernorm),
        q_a=MatrixAddress() if tensors.q_a_proj is None else native.matrix_address(tensors.q_a_proj),
        q=native.matrix_address(tensors.q_proj),
        kv_a=native.matrix_address(tensors.kv_a_proj_with_mqa),
        o=native.matrix_address(tensors.o_proj),
        gate=_address(gate),
        n_experts=0 if gate is None else config.n_routed_experts,
        top_k=0 if gate is None else config.num_experts_per_tok,
        scaling=config.routed_scaling_factor,
        experts=_table(experts),
        shared=_table(tensors.shared),
        expert_counts=_address(tensors.expert_counts),
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _table(table: ExpertTable | None) -> int | None:
    return None if table is None or table.mlps is None else ctypes.addressof(table.mlps)


def _suits(config: ModelConfig, tensors: LayerTensors) -> bool:
    """Whether the kernel can read all of a layer in place."""
    given = [value for name, value in vars(tensors).items() if isinstance(value, Tensor) and name != "expert_counts"]
    matrices = [value for value in vars(tensors).values() if isinstance(value, QuantizedMatrix)]
    tables = [table for table in (tensors.experts, tensors.shared) if table is not None]
    quantized = isinstance(tensors.q_proj, QuantizedMatrix)
    return (
        all(native.suits_weight(tensor) for tensor in given)
        and all(native.suits_quantized(matrix) for matrix in matrices)
        and len(matrices) == (0 if not quantized else 3 if tensors.q_a_proj is None else 4)
        and all(table.mlps is not None and table.quantized == quantized for table in tables)
        and config.latent_width % native.STEP == 0
        and config.v_head_dim * config.num_attention_heads % native.STEP == 0
        and config.qk_nope_head_dim % 2 == config.qk_rope_head_dim % 2 == 0
        and config.num_attention_heads <= native.MOST_HEADS
        and config.kv_lora_rank <= native.MOST_LATENT
        and config.n_routed_experts <= native.MOST_EXPERTS
        and (tensors.gate is None or config.topk_method == "greedy")
    )
