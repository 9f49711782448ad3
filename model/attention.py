"""Multi-head latent attention (DeepSeek-V2 paper, section 2.1).

The cache keeps, for each token and layer, one row of C + R values: the normed latent c and the rotated key k_pe, which
all heads share. The same attention is computed in two forms:

- expanded (eq. 10 and 11 as written): keys and values of every head are made from the latents. Fewest operations when
  many tokens are read at once.
- absorbed: W_UK moves to the query's side and W_UV behind the softmax, so that attention reads the rows as they lie.
  Fewest operations and bytes when few tokens are added to many.
"""

# T new tokens  S cached and new tokens  H heads  N nope  R rope  C latent  V value  D hidden

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model import kernels
from dslite.model.config import ModelConfig
from dslite.model.rope import rotate

Form = Literal["auto", "expanded", "absorbed"]

LATENT_EPS = 1e-6  # the Hub's code builds these norms with their default, not with rms_norm_eps


class LatentCache(Protocol):
    """The rows of one sequence, layer by layer."""

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        ...

    def append(self, layer: int, rows: Tensor) -> Tensor:
        """Put rows (T, C+R) behind the `length` rows of a layer; return all of them where they are kept, (S, C+R)."""
        ...

    def reserve(self, count: int) -> Tensor:
        """The rows of all layers with `count` more, not yet filled, where they are kept: (layers, S, C+R)."""
        ...

    def commit(self, count: int) -> None:
        """`count` more tokens are in every layer. Rows appended without it are overwritten by the next append."""
        ...


@dataclass(frozen=True)
class Span:
    """`count` neighbouring rows of a batch that belong to one sequence."""

    cache: LatentCache
    count: int


def last_of_each(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The rows (spans, …) of (T, …) that belong to the last token of each span."""
    return torch.cat([rows[-1:] for rows in x.split([span.count for span in spans])])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight over the last axis: normed in float32, rounded, then scaled, as the model was trained."""
    if (out := kernels.rms_norm(x, weight, eps)) is not None:
        return out
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


@dataclass(frozen=True)
class MultiHeadLatentAttention:
    """Attention of one layer. Fields are the Hub's tensors; q_proj or the three of query compression are None."""

    config: ModelConfig
    q_proj: Tensor | None
    q_a_proj: Tensor | None
    q_a_layernorm: Tensor | None
    q_b_proj: Tensor | None
    kv_a_proj_with_mqa: Tensor
    kv_a_layernorm: Tensor
    kv_b_proj: Tensor
    o_proj: Tensor

    @classmethod
    def build(cls, config: ModelConfig, take: Callable[[str], Tensor]) -> "MultiHeadLatentAttention":
        """`take` gives the tensor of a name such as `o_proj`."""
        compressed = config.q_lora_rank is not None
        return cls(
            config=config,
            q_proj=None if compressed else take("q_proj"),
            q_a_proj=take("q_a_proj") if compressed else None,
            q_a_layernorm=take("q_a_layernorm") if compressed else None,
            q_b_proj=take("q_b_proj") if compressed else None,
            kv_a_proj_with_mqa=take("kv_a_proj_with_mqa"),
            kv_a_layernorm=take("kv_a_layernorm"),
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
        """hidden (T, D), rotation factors (T, R/2), spans that cover the T rows in order: (T, D).

        With `last_only` the caches get all rows, and the last token of each span alone attends: (spans, D).
        """
        rows = self._rows(hidden, factors)
        counts = [span.count for span in spans]
        asking = [1] * len(spans) if last_only else counts
        if last_only:
            hidden, factors = last_of_each(hidden, spans), last_of_each(factors, spans)
        queries = self._queries(hidden, factors)
        heads = []
        for span, some, new in zip(spans, queries.split(asking), rows.split(counts), strict=True):
            kept = span.cache.append(layer, new)
            absorb = form == "absorbed" or (form == "auto" and self._absorb_suits(len(some), len(kept)))
            heads.append(self._absorbed(some, kept) if absorb else self._expanded(some, kept))
        values = heads[0] if len(heads) == 1 else torch.cat(heads)
        return kernels.linear(values.flatten(1), self.o_proj)

    def _absorb_suits(self, count: int, total: int) -> bool:
        """Whether the absorbed form needs fewer operations for `count` new of `total` tokens.

        It pays with wider keys and values for not making those of the past. Measured on a CPU with both forms as
        compiled kernels, 1,024 to 16,384 tokens: the times cross within a third of where the operations do.
        """
        config = self.config
        made = config.qk_nope_head_dim + config.v_head_dim
        wider = 2 * config.kv_lora_rank - made
        return count * total * wider < (total - count) * config.kv_lora_rank * made

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

    def _rows(self, hidden: Tensor, factors: Tensor) -> Tensor:
        """What the cache keeps of each token, (T, C+R). Paper, eq. 9 and 15; the norm is the latent's alone."""
        both = kernels.linear(hidden, self.kv_a_proj_with_mqa)
        latent, rope = both.split([self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1)
        return torch.cat([rms_norm(latent, self.kv_a_layernorm, LATENT_EPS), rotate(rope, factors)], dim=-1)

    def _up_projections(self) -> tuple[Tensor, Tensor]:
        """W_UK (H, N, C) and W_UV (H, V, C): views of kv_b_proj, never copies."""
        config = self.config
        by_head = self.kv_b_proj.unflatten(0, (config.num_attention_heads, -1))
        w_uk, w_uv = by_head.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return w_uk, w_uv

    def _expanded(self, queries: Tensor, rows: Tensor) -> Tensor:
        """queries (T, H, N+R), rows (S, C+R): values (T, H, V)."""
        config = self.config
        if (out := kernels.expanded_attention(queries, rows, self.kv_b_proj, config.softmax_scale)) is not None:
            return out
        latents, k_pe = rows.split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
        expanded = kernels.linear(latents, self.kv_b_proj).unflatten(-1, (config.num_attention_heads, -1))
        k_nope, values = expanded.split([config.qk_nope_head_dim, config.v_head_dim], dim=-1)  # (S, H, N), (S, H, V)
        keys = torch.cat([k_nope, k_pe[:, None].expand(-1, config.num_attention_heads, -1)], dim=-1)
        out = self._attend(queries.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1))
        return out.transpose(0, 1)

    def _absorbed(self, queries: Tensor, rows: Tensor) -> Tensor:
        """The same as _expanded, with rows read as they are. Paper, the end of section 2.1.2."""
        config = self.config
        w_uk, w_uv = self._up_projections()
        q_nope, q_pe = queries.split([config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1)
        q_rows = torch.cat([torch.einsum("thn,hnc->thc", q_nope, w_uk), q_pe], dim=-1)  # (T, H, C+R)
        latents = kernels.absorbed_attention(q_rows, rows, config.kv_lora_rank, config.softmax_scale)
        if latents is None:
            keys = rows.expand(config.num_attention_heads, -1, -1)
            attended = self._attend(q_rows.transpose(0, 1), keys, keys)[..., : config.kv_lora_rank]
            latents = attended.transpose(0, 1)  # (T, H, C)
        return torch.einsum("thc,hvc->thv", latents, w_uv)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal softmax(q·k)·v by head: (H, T, K), (H, S, K), (H, S, V) give (H, T, V). Paper, eq. 17 and 18."""
        width, count, past = values.shape[-1], queries.shape[1], keys.shape[1] - queries.shape[1]
        mask = None
        if past and count > 1:
            mask = torch.ones(count, past + count, dtype=torch.bool, device=queries.device).tril(past)
        # The fused kernels want values as wide as keys: zeros behind them change nothing.
        values = F.pad(values, (0, keys.shape[-1] - width)) if width < keys.shape[-1] else values
        out = F.scaled_dot_product_attention(
            queries[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None and count > 1,
            scale=self.config.softmax_scale,
        )
        return out[0, ..., :width]
