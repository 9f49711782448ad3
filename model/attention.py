"""Multi-head latent attention (DeepSeek-V2 paper, section 2.1).

The cache holds one latent entry of C + R values for each token and layer: the normed latent c and the rotated key
k_pe, which all heads share (eq. 9 and 15). The same attention is computed in two forms:

- expanded (eq. 10 and 11 as written): keys and values of every head are made from the latents. Fewest operations in
  prefill.
- absorbed: W_UK is applied to the queries and W_UV behind the softmax, so that attention reads the entries as they are
  stored. Fewest operations and bytes in decode.
"""

# T new tokens  S cached and new tokens  H heads  N nope  R rope  C latent  V value  D hidden

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

from dslite.model import kernels
from dslite.model.config import ModelConfig
from dslite.model.quantized import Weight, plain
from dslite.model.rope import rotate

Form = Literal["auto", "expanded", "absorbed"]

_LOWER_RIGHT = 2  # of torch.nn.attention.bias.CausalVariant
LATENT_EPS = 1e-6  # the Hub's code builds these norms with their default, not with rms_norm_eps


class LatentCache(Protocol):
    """The latent entries of one sequence, by layer."""

    @property
    def length(self) -> int:
        """Tokens whose entries every layer holds."""
        ...

    def append(self, layer: int, entries: Tensor, /) -> Tensor:
        """Store entries (T, C+R) behind the `length` ones of a layer; return a view of all of them, (S, C+R)."""
        ...

    def reserve(self, count: int) -> Tensor:
        """A view of the entries of all layers with `count` more, not yet filled, in host memory: (layers, S, C+R)."""
        ...

    def addresses(self, count: int) -> Sequence[int]:
        """Where each layer's entries begin on the device, with room for `count` more."""
        ...

    def commit(self, count: int) -> None:
        """Count `count` more tokens, stored in every layer. Entries without it are overwritten by the next append."""
        ...


@dataclass(frozen=True)
class Span:
    """`count` neighbouring tokens of a batch that belong to one sequence."""

    cache: LatentCache
    count: int


def last_of_each(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The values (spans, …) of x (T, …) at the last token of each span."""
    return torch.cat([values[-1:] for values in x.split([span.count for span in spans])])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last axis: normalised in float32, rounded, then scaled, as in training."""
    if (out := kernels.rms_norm(x, weight, eps)) is not None:
        return out
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


@dataclass(frozen=True)
class MultiHeadLatentAttention:
    """Attention of one layer. Fields have the Hub's names; either q_proj or the three of query compression are None."""

    config: ModelConfig
    q_proj: Weight | None
    q_a_proj: Weight | None
    q_a_layernorm: Tensor | None
    q_b_proj: Weight | None
    kv_a_proj_with_mqa: Weight
    kv_a_layernorm: Tensor
    kv_b_proj: Weight
    o_proj: Weight

    @classmethod
    def build(cls, config: ModelConfig, take: Callable[[str], Weight]) -> "MultiHeadLatentAttention":
        """`take` gives the weight of a name such as `o_proj`."""
        compressed = config.q_lora_rank is not None
        return cls(
            config=config,
            q_proj=None if compressed else take("q_proj"),
            q_a_proj=take("q_a_proj") if compressed else None,
            q_a_layernorm=plain(take("q_a_layernorm")) if compressed else None,
            q_b_proj=take("q_b_proj") if compressed else None,
            kv_a_proj_with_mqa=take("kv_a_proj_with_mqa"),
            kv_a_layernorm=plain(take("kv_a_layernorm")),
            kv_b_proj=take("kv_b_proj"),
            o_proj=take("o_proj"),
        )

    def __call__(
        self,
        layer: int,
        hidden: Tensor,
        factors: Tensor,
        spans: Sequence[Span],
        form: Form = "auto",
        *,
        last_only: bool = False,
    ) -> Tensor:
        """hidden (T, D), rotation factors (T, R/2), spans that cover the T tokens in order: (T, D).

        With `last_only` the caches get all entries, but only the last token of each span attends: (spans, D).
        """
        entries = self._entries(hidden, factors)  # (T, C+R)
        counts = [span.count for span in spans]
        n_queries = [1] * len(spans) if last_only else counts
        if last_only:
            hidden, factors = last_of_each(hidden, spans), last_of_each(factors, spans)
        queries = self._queries(hidden, factors)
        outputs = []
        for span, own, new in zip(spans, queries.split(n_queries), entries.split(counts), strict=True):
            cached = span.cache.append(layer, new)  # (S, C+R)
            absorb = form == "absorbed" or (form == "auto" and self._absorbed_is_cheaper(len(own), len(cached)))
            outputs.append(self._absorbed(own, cached) if absorb else self._expanded(own, cached))
        values = outputs[0] if len(outputs) == 1 else torch.cat(outputs)  # (T, H, V)
        return kernels.linear(values.flatten(1), self.o_proj)

    def _absorbed_is_cheaper(self, count: int, total: int) -> bool:
        """Whether the absorbed form needs fewer operations for `count` new of `total` tokens.

        Its keys and values are wider, but those of earlier tokens need not be made. Measured on a CPU with both forms
        as compiled kernels, 1,024 to 16,384 tokens: the times cross within a third of where the operations do.
        """
        config = self.config
        expanded = config.qk_nope_head_dim + config.v_head_dim
        wider = 2 * config.kv_lora_rank - expanded
        return count * total * wider < (total - count) * config.kv_lora_rank * expanded

    def _queries(self, hidden: Tensor, factors: Tensor) -> Tensor:
        """Rotated queries of all heads: (T, H, N+R). Paper, eq. 12 to 14."""
        if self.q_proj is not None:
            flat = kernels.linear(hidden, self.q_proj)
        else:
            assert self.q_a_proj is not None
            assert self.q_a_layernorm is not None
            assert self.q_b_proj is not None
            compressed = kernels.linear(hidden, self.q_a_proj)
            flat = kernels.linear(rms_norm(compressed, self.q_a_layernorm, LATENT_EPS), self.q_b_proj)
        queries = flat.unflatten(-1, (self.config.num_attention_heads, self.config.qk_head_dim))
        nope, rope = queries.split([self.config.qk_nope_head_dim, self.config.qk_rope_head_dim], dim=-1)
        return torch.cat([nope, rotate(rope, factors)], dim=-1)

    def _entries(self, hidden: Tensor, factors: Tensor) -> Tensor:
        """The latent entries of the tokens, (T, C+R). Paper, eq. 9 and 15; only the latent is normed."""
        projected = kernels.linear(hidden, self.kv_a_proj_with_mqa)
        latent, rope = projected.split([self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1)
        return torch.cat([rms_norm(latent, self.kv_a_layernorm, LATENT_EPS), rotate(rope, factors)], dim=-1)

    @cached_property
    def kv_b(self) -> Tensor:
        """kv_b_proj in the type of activations: the absorbed form takes it apart. 113 of 16,700 MB in Lite."""
        return kernels.dense(self.kv_b_proj, self.kv_a_layernorm.dtype)

    @cached_property
    def _up_projections(self) -> tuple[Tensor, Tensor]:
        """W_UK transposed (H, C, N) and W_UV (H, V, C): views of kv_b_proj."""
        config = self.config
        by_head = self.kv_b.unflatten(0, (config.num_attention_heads, -1))
        w_uk, w_uv = by_head.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return w_uk.transpose(1, 2), w_uv

    @cached_property
    def _w_uk(self) -> Tensor:
        """W_UK transposed in memory of its own, as the compiled kernel reads it: 57 MB for all layers of Lite."""
        return self._up_projections[0].contiguous()

    def _expanded(self, queries: Tensor, entries: Tensor) -> Tensor:
        """queries (T, H, N+R), entries (S, C+R): values (T, H, V). Paper, eq. 10, 11, 17, 18."""
        config = self.config
        if (out := kernels.expanded_attention(queries, entries, self.kv_b, config.softmax_scale)) is not None:
            return out
        latents, k_pe = entries.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        expanded = kernels.linear(latents, self.kv_b).unflatten(-1, (config.num_attention_heads, -1))
        k_nope, values = expanded.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)  # (S, H, N), (S, H, V)
        keys = torch.cat([k_nope, k_pe[:, None].expand(-1, config.num_attention_heads, -1)], dim=-1)
        out = self._attend(queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1))
        return out.transpose(0, 1)

    def _absorbed(self, queries: Tensor, entries: Tensor) -> Tensor:
        """The same as _expanded, over the entries as they are stored. Paper, the end of section 2.1.2."""
        config = self.config
        w_uk, w_uv = self._up_projections
        q_nope, q_pe = queries.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        q_latent = kernels.by_head(q_nope, self._w_uk if kernels.multiplies_by_head(q_nope) else w_uk)  # (T, H, C)
        absorbed = torch.cat([q_latent, q_pe], dim=-1)  # (T, H, C+R)
        latents = kernels.absorbed_attention(absorbed, entries, config.kv_lora_rank, config.softmax_scale)
        if latents is None:
            keys = entries.expand(config.num_attention_heads, -1, -1)
            attended = self._attend(absorbed.transpose(0, 1), keys, keys)[..., : config.kv_lora_rank]
            latents = attended.transpose(0, 1)  # (T, H, C)
        return kernels.by_head(latents, w_uv)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal softmax(q·k)·v by head: (H, T, K), (H, S, K), (H, S, V) give (H, T, V). Paper, eq. 17 and 18."""
        width, count, past = values.shape[-1], queries.shape[1], keys.shape[1] - queries.shape[1]
        # The fused kernels need values as wide as keys: padding with zeros does not change the result.
        values = F.pad(values, (0, keys.shape[-1] - width)) if width < keys.shape[-1] else values
        scale, behind = self.config.softmax_scale, past > 0 and count > 1
        out = _attend_unmasked(queries[None], keys[None], values[None], scale) if behind else None
        if out is None:
            mask = None
            if behind:
                mask = torch.ones(count, past + count, dtype=torch.bool, device=queries.device).tril(past)
            out = F.scaled_dot_product_attention(
                queries[None],
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=mask is None and count > 1,
                scale=scale,
            )
        return out[0, ..., :width]


def _attend_unmasked(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor | None:
    """Attention (1, H, T, K) of the last T of S tokens on a GPU by a kernel that has the causal mask built in.

    FlashAttention takes widths up to 256 in BF16, the memory-efficient kernel others; both align the mask to the last
    key. None where neither applies. torch.nn.attention.bias.causal_lower_right chooses likewise, but each of its
    objects takes host memory for 2·T·S floats.
    """
    if queries.device.type != "cuda" or queries.shape[-1] % 8:
        return None
    params = SDPAParams(queries, keys, values, None, 0.0, False, False)
    if can_use_flash_attention(params):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = flash(queries, keys, values, 0.0, is_causal=True, scale=scale)[0]
        return out
    if not can_use_efficient_attention(params):
        return None
    by_token = (part.transpose(1, 2) for part in (queries, keys, values))
    out = torch.ops.aten._efficient_attention_forward(
        *by_token, None, None, None, None, None, 0.0, _LOWER_RIGHT, scale=scale
    )[0]
    return out.transpose(1, 2)
