"""Absorbed attention of few tokens on a GPU: split keys, each cached row read once for key and value.

Two launches, whatever the length: the grid depends on the number of splits alone, and lengths are read on the device,
so a captured graph serves every position. Tiles of 16 rows of 576 values leave room in the 99 KB of shared memory that
consumer GPUs give a block; 32 would not on all of them.
"""

# T tokens  H heads  S cached tokens  C latent  R rope  N split

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_KEYS = 16
HEAD_TILE = 16  # the least that a tensor core's product takes


@triton.jit
def attend_splits(
    queries,  # (T, H, C+R)
    rows,  # (capacity, C+R)
    lengths,  # (T,) int32: rows that each token sees
    sums,  # (T, H, N, C) float32: values of a split, normed by its own sum
    logs,  # (T, H, N) float32: log of that sum
    scale,
    row_stride,
    heads: tl.constexpr,
    latent: tl.constexpr,
    rope: tl.constexpr,
    splits: tl.constexpr,
    latent_tile: tl.constexpr,
    rope_tile: tl.constexpr,
    head_tile: tl.constexpr,
    block_keys: tl.constexpr,
):
    """One token, one tile of heads, one split of its keys, with a running softmax (arXiv 1805.02867)."""
    token, first_head, split = tl.program_id(0), tl.program_id(1) * head_tile, tl.program_id(2)
    head = first_head + tl.arange(0, head_tile)
    c, r = tl.arange(0, latent_tile), tl.arange(0, rope_tile)
    own = queries + (token * heads + head)[:, None] * (latent + rope)
    q_latent = tl.load(own + c[None, :], mask=(head < heads)[:, None] & (c < latent)[None, :], other=0.0)
    q_rope = tl.load(own + latent + r[None, :], mask=(head < heads)[:, None] & (r < rope)[None, :], other=0.0)

    length = tl.load(lengths + token)
    share = tl.cdiv(tl.cdiv(length, splits), block_keys) * block_keys
    first = split * share
    last = tl.minimum(first + share, length)
    most = tl.full((head_tile,), float("-inf"), tl.float32)
    total = tl.zeros((head_tile,), tl.float32)
    values = tl.zeros((head_tile, latent_tile), tl.float32)
    for start in range(first, last, block_keys):
        key = start + tl.arange(0, block_keys)
        there = key < last
        row = rows + key.to(tl.int64) * row_stride
        # Behind the last row lies memory that was never written: it is masked, not multiplied by zero.
        k_latent = tl.load(row[:, None] + c[None, :], mask=there[:, None] & (c < latent)[None, :], other=0.0)
        k_rope = tl.load(row[:, None] + latent + r[None, :], mask=there[:, None] & (r < rope)[None, :], other=0.0)
        scores = tl.dot(q_latent, tl.trans(k_latent), input_precision="ieee")
        scores += tl.dot(q_rope, tl.trans(k_rope), input_precision="ieee")
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        greatest = tl.maximum(most, tl.max(scores, 1))
        factors = tl.exp(scores - greatest[:, None])
        keep = tl.exp(most - greatest)
        total = total * keep + tl.sum(factors, 1)
        values = values * keep[:, None] + tl.dot(factors.to(k_latent.dtype), k_latent, input_precision="ieee")
        most = greatest
    place = (token * heads + head) * splits + split
    total = tl.where(total > 0, total, 1.0)  # an empty split: zeros, and minus infinity for its log
    normed = values / total[:, None]
    tl.store(sums + place[:, None] * latent + c[None, :], normed, mask=(head < heads)[:, None] & (c < latent)[None, :])
    tl.store(logs + place, most + tl.log(total), mask=head < heads)


@triton.jit
def merge_splits(
    sums,  # (T, H, N, C) float32
    logs,  # (T, H, N) float32
    out,  # (T, H, C)
    latent: tl.constexpr,
    splits: tl.constexpr,
    latent_tile: tl.constexpr,
    split_tile: tl.constexpr,
):
    """One head of one token: its splits, each weighted by the share of its exponentials."""
    place = tl.program_id(0)
    c, n = tl.arange(0, latent_tile), tl.arange(0, split_tile)
    log = tl.load(logs + place * splits + n, mask=n < splits, other=float("-inf"))
    weights = tl.exp(log - tl.max(log, 0))
    weights = weights / tl.sum(weights, 0)
    at = sums + (place * splits + n)[:, None] * latent + c[None, :]
    values = tl.load(at, mask=(n < splits)[:, None] & (c < latent)[None, :], other=0.0)
    # An empty split has weight 0, and zeros for values.
    merged = tl.sum(values * weights[:, None], 0)
    tl.store(out + place * latent + c, merged.to(out.dtype.element_ty), mask=c < latent)


@torch.library.custom_op("dslite::absorbed_attention", mutates_args=())
def absorbed_attention(
    queries: Tensor, rows: Tensor, lengths: Tensor, latent: int, scale: float, splits: int
) -> Tensor:
    """Absorbed queries (T, H, C+R) over cached rows (capacity, C+R): latents (T, H, C).

    Token t sees the first lengths[t] ≥ 1 rows; `lengths` (T,) int32 lies on the device. The reference is `reference`.
    """
    tokens, heads, width = queries.shape
    sums = torch.empty(tokens, heads, splits, latent, dtype=torch.float32, device=queries.device)
    logs = torch.empty(tokens, heads, splits, dtype=torch.float32, device=queries.device)
    out = torch.empty(tokens, heads, latent, dtype=queries.dtype, device=queries.device)
    latent_tile = triton.next_power_of_2(max(latent, 16))
    attend_splits[(tokens, triton.cdiv(heads, HEAD_TILE), splits)](
        queries,
        rows,
        lengths,
        sums,
        logs,
        scale,
        rows.stride(0),
        heads=heads,
        latent=latent,
        rope=width - latent,
        splits=splits,
        latent_tile=latent_tile,
        rope_tile=triton.next_power_of_2(max(width - latent, 16)),
        head_tile=HEAD_TILE,
        block_keys=BLOCK_KEYS,
        num_warps=4,
        num_stages=1,
    )
    merge_splits[(tokens * heads,)](
        sums,
        logs,
        out,
        latent=latent,
        splits=splits,
        latent_tile=latent_tile,
        split_tile=triton.next_power_of_2(splits),
    )
    return out


@absorbed_attention.register_fake
def _(queries: Tensor, rows: Tensor, lengths: Tensor, latent: int, scale: float, splits: int) -> Tensor:
    return queries.new_empty(*queries.shape[:2], latent)


def reference(queries: Tensor, rows: Tensor, lengths: Tensor, latent: int, scale: float) -> Tensor:
    """What absorbed_attention computes, in float32."""
    kept = rows[: int(lengths.max())].float()
    scores = torch.einsum("thc,sc->ths", queries.float(), kept) * scale
    hidden = torch.arange(len(kept), device=rows.device) >= lengths[:, None, None]
    return torch.einsum("ths,sc->thc", scores.masked_fill(hidden, float("-inf")).softmax(-1), kept[:, :latent])
