"""Absorbed attention of one token of each of a few sequences on a GPU: split keys, each latent entry read once for key
and value.

Three launches, for sequences of any length. A token's position and the address of its cache are read on the device,
from the `state` tensor: a recorded launch serves every position of every cache, also of one that is allocated later.
Two tiles of 32 entries of 576 values fit into the 99 KB of shared memory that consumers' GPUs give a block; an H100 has
three under way, and took 21.8 us for 32,768 entries (42 with tiles of 16).
"""

# T tokens, each of a sequence of its own  H heads  N nope  R rope  C latent  V value  S cached tokens  P splits

import torch
import triton
import triton.language as tl
from torch import Tensor

from dslite.model.kernels import gpu_limits
from dslite.model.kernels.triton_products import load_weights

BLOCK_KEYS = {2: 32, 4: 16}  # by bytes of a value
HEAD_TILE = 16  # the fewest rows that a tensor core multiplies
LEAST_SHARE = 32  # keys of a split, so that short sequences have few splits to merge
MOST_SPLITS = 128
LATENT_TILE = 64  # values of a latent that a program of the products makes, or reads at once
VALUE_TILE = 64  # values of a head that a program makes: more programs would each merge the head's splits
MERGE_STEP, MERGE_WARPS = 128, 4  # the fastest of 20 on an H100
_MOST_STAGES = 3
_OTHER_SHARED_MEMORY = 20_000  # bytes that queries, scores and sums take, at most

# The numbers of a token in `state` (T, 2 + layers) int64, on the device.
TOKEN, POSITION, LAYERS = range(3)  # token id, tokens before it, then the address of each layer's entries


def splits(heads: int, tokens: int, multiprocessors: int) -> int:
    """Programs that share a sequence: two for each multiprocessor, all sequences together."""
    head_tiles = -(-heads // HEAD_TILE)
    return min(max(2 * multiprocessors // (head_tiles * tokens), 1), MOST_SPLITS)


@triton.jit
def first_entry(state, layer, like, aligned: tl.constexpr):
    """The address of a layer's entries of one token's sequence, as a pointer of the kind of `like`."""
    entries = tl.load(state + 2 + layer).to(tl.pointer_type(like.dtype.element_ty))
    return tl.multiple_of(entries, 16) if aligned else entries


@triton.jit
def store_rotated(x, factors, out, rope: tl.constexpr, rope_tile: tl.constexpr):
    """Turn neighbouring pairs of x (R,) by factors (R/2, 2) in float32."""
    pair = tl.arange(0, rope_tile)
    there = pair < rope // 2
    real = tl.load(x + 2 * pair, mask=there, other=0.0).to(tl.float32)
    imaginary = tl.load(x + 2 * pair + 1, mask=there, other=0.0).to(tl.float32)
    cosine = tl.load(factors + 2 * pair, mask=there, other=0.0)
    sine = tl.load(factors + 2 * pair + 1, mask=there, other=0.0)
    kind = out.dtype.element_ty
    tl.store(out + 2 * pair, (real * cosine - imaginary * sine).to(kind), mask=there)
    tl.store(out + 2 * pair + 1, (real * sine + imaginary * cosine).to(kind), mask=there)


@triton.jit(do_not_specialize=["layer"])
def absorb(
    state,  # (T, 2 + layers) int64
    layer,
    q,  # (T, H, N+R): before the rotation
    kv,  # (T, C+R): before norm and rotation
    kv_norm,  # (C,)
    kv_b,  # (H, N+V, C)
    factors,  # (T, R/2, 2) float32
    queries,  # (T, H, C+R)
    eps,
    state_width: tl.constexpr,
    q_width: tl.constexpr,
    kv_width: tl.constexpr,
    heads: tl.constexpr,
    nope: tl.constexpr,
    rope: tl.constexpr,
    latent: tl.constexpr,
    value: tl.constexpr,
    nope_tile: tl.constexpr,
    rope_tile: tl.constexpr,
    latent_tile: tl.constexpr,
    block: tl.constexpr,
    aligned: tl.constexpr,
):
    """Some values of one head's absorbed query; behind the last head, the token's latent entry, into the cache."""
    head, part, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width: tl.constexpr = latent + rope
    state += token * state_width
    q += token * q_width
    kv += token * kv_width
    factors += token * (rope // 2 * 2)
    queries += token * (heads * width)
    if head < heads:
        n, c = tl.arange(0, nope_tile), part * block + tl.arange(0, block)
        own = q + head * (nope + rope)
        mine = tl.load(own + n, mask=n < nope, other=0.0).to(tl.float32)
        w_uk = load_weights(kv_b + head * (nope + value) * latent, n, c, nope, latent).to(tl.float32)
        absorbed = tl.sum(mine[:, None] * w_uk, 0)
        tl.store(queries + head * width + c, absorbed.to(queries.dtype.element_ty), mask=c < latent)
        if part == 0:
            store_rotated(own + nope, factors, queries + head * width + latent, rope, rope_tile)
    elif part == 0:
        entry = first_entry(state, layer, kv, aligned) + tl.load(state + 1) * width
        c = tl.arange(0, latent_tile)
        kind = kv.dtype.element_ty
        wide = tl.load(kv + c, mask=c < latent, other=0.0).to(tl.float32)
        normed = (wide * tl.rsqrt(tl.sum(wide * wide, 0) / latent + eps)).to(kind).to(tl.float32)
        scaled = normed * tl.load(kv_norm + c, mask=c < latent, other=0.0).to(tl.float32)
        tl.store(entry + c, scaled.to(kind), mask=c < latent)
        store_rotated(kv + latent, factors, entry + latent, rope, rope_tile)


@triton.jit(do_not_specialize=["layer"])
def attend_splits(
    state,  # (T, 2 + layers) int64
    layer,
    queries,  # (T, H, C+R)
    sums,  # (T, H, P, C) float32: values of a split, normed by its own sum; of an empty split unwritten
    logs,  # (T, H, P) float32: log of that sum
    scale,
    state_width: tl.constexpr,
    heads: tl.constexpr,
    latent: tl.constexpr,
    rope: tl.constexpr,
    splits: tl.constexpr,
    latent_tile: tl.constexpr,
    rope_tile: tl.constexpr,
    head_tile: tl.constexpr,
    block_keys: tl.constexpr,
    least_share: tl.constexpr,
    aligned: tl.constexpr,
):
    """One tile of heads, one split of a sequence's keys, with a running softmax (arXiv 1805.02867)."""
    head, split = tl.program_id(0) * head_tile + tl.arange(0, head_tile), tl.program_id(1)
    token = tl.program_id(2)
    state += token * state_width
    queries += token * (heads * (latent + rope))
    c, r = tl.arange(0, latent_tile), tl.arange(0, rope_tile)
    width: tl.constexpr = latent + rope
    own = queries + head[:, None] * width
    q_latent = tl.load(own + c[None, :], mask=(head < heads)[:, None] & (c < latent)[None, :], other=0.0)
    q_rope = tl.load(own + latent + r[None, :], mask=(head < heads)[:, None] & (r < rope)[None, :], other=0.0)

    entries = first_entry(state, layer, queries, aligned)
    length = tl.load(state + 1).to(tl.int32) + 1
    share = tl.maximum(tl.cdiv(tl.cdiv(length, splits), block_keys) * block_keys, least_share)
    first = split * share
    last = tl.minimum(first + share, length)
    most = tl.full((head_tile,), float("-inf"), tl.float32)
    total = tl.zeros((head_tile,), tl.float32)
    values = tl.zeros((head_tile, latent_tile), tl.float32)
    for start in range(first, last, block_keys):
        key = start + tl.arange(0, block_keys)
        there = key < last
        entry = entries + key.to(tl.int64) * width
        # Memory behind the last entry was never written: it is masked, because zero times NaN is NaN.
        k_latent = tl.load(entry[:, None] + c[None, :], mask=there[:, None] & (c < latent)[None, :], other=0.0)
        k_rope = tl.load(entry[:, None] + latent + r[None, :], mask=there[:, None] & (r < rope)[None, :], other=0.0)
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
    used = (head < heads) & (first < last)
    total = tl.where(total > 0, total, 1.0)  # of an empty split, whose log is minus infinity
    normed = values / total[:, None]
    tl.store(sums + place[:, None] * latent + c[None, :], normed, mask=used[:, None] & (c < latent)[None, :])
    tl.store(logs + place, most + tl.log(total), mask=head < heads)


@triton.jit
def merge_values(
    sums,  # (T, H, P, C) float32
    logs,  # (T, H, P) float32
    kv_b,  # (H, N+V, C)
    out,  # (T, H, V)
    heads: tl.constexpr,
    nope: tl.constexpr,
    value: tl.constexpr,
    latent: tl.constexpr,
    splits: tl.constexpr,
    split_tile: tl.constexpr,
    value_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some values of one head: its splits, each weighted by the share of its exponentials, times W_UV."""
    head, token = tl.program_id(0), tl.program_id(2)
    v = tl.program_id(1) * value_tile + tl.arange(0, value_tile)
    n = tl.arange(0, split_tile)
    row = token * heads + head
    log = tl.load(logs + row * splits + n, mask=n < splits, other=float("-inf"))
    weights = tl.exp(log - tl.max(log, 0))
    weights = weights / tl.sum(weights, 0)
    used = log > float("-inf")
    kind = out.dtype.element_ty
    total = tl.zeros((value_tile, step), tl.float32)
    for start in range(0, latent, step):
        c = start + tl.arange(0, step)
        parts = sums + (row * splits + n)[:, None] * latent + c[None, :]
        part = tl.load(parts, mask=used[:, None] & (c < latent)[None, :], other=0.0)
        merged = tl.sum(part * weights[:, None], 0).to(kind).to(tl.float32)
        w_uv = load_weights(kv_b + (head * (nope + value) + nope) * latent, v, c, value, latent)
        total += w_uv.to(tl.float32) * merged[None, :]
    tl.store(out + row * value + v, tl.sum(total, 1).to(kind), mask=v < value)


def _tile(width: int) -> int:
    return max(1 << (width - 1).bit_length(), 16)


def _aligned(width: int, item: int) -> bool:
    """Whether every entry of the cache begins at a multiple of sixteen bytes, as its first one does."""
    return width * item % 16 == 0


@torch.library.custom_op("dslite::absorb", mutates_args=("queries",))
def launch_absorb(
    state: Tensor,
    layer: int,
    q: Tensor,
    kv: Tensor,
    kv_norm: Tensor,
    kv_b: Tensor,
    factors: Tensor,
    queries: Tensor,
    nope: int,
    eps: float,
) -> None:
    """Rotate and absorb q (T, H·(N+R)) into queries (T, H, C+R); norm and rotate kv (T, C+R) into the caches.

    One launch. The rows of q and kv may lie apart, as parts of one product do.
    """
    tokens, heads, width = queries.shape
    latent = kv_norm.shape[0]
    block = min(LATENT_TILE, _tile(latent))
    absorb[(heads + 1, triton.cdiv(latent, block), tokens)](
        state,
        layer,
        q,
        kv,
        kv_norm,
        kv_b,
        factors,
        queries,
        eps,
        state_width=state.shape[1],
        q_width=q.stride(0),
        kv_width=kv.stride(0),
        heads=heads,
        nope=nope,
        rope=width - latent,
        latent=latent,
        value=kv_b.shape[0] // heads - nope,
        nope_tile=_tile(nope),
        rope_tile=_tile((width - latent) // 2),
        latent_tile=_tile(latent),
        block=block,
        aligned=_aligned(width, queries.element_size()),
        num_warps=4,
    )


@torch.library.custom_op("dslite::attend_splits", mutates_args=("sums", "logs"))
def launch_attend_splits(state: Tensor, layer: int, queries: Tensor, sums: Tensor, logs: Tensor, scale: float) -> None:
    """Queries (T, H, C+R) over the latent entries up to the tokens' own: sums (T, H, P, C), logs (T, H, P)."""
    tokens, heads, splits, latent = sums.shape
    width = queries.shape[2]
    attend_splits[(triton.cdiv(heads, HEAD_TILE), splits, tokens)](
        state,
        layer,
        queries,
        sums,
        logs,
        scale,
        state_width=state.shape[1],
        heads=heads,
        latent=latent,
        rope=width - latent,
        splits=splits,
        latent_tile=_tile(latent),
        rope_tile=_tile(width - latent),
        head_tile=HEAD_TILE,
        block_keys=BLOCK_KEYS[queries.element_size()],
        least_share=LEAST_SHARE,
        aligned=_aligned(width, queries.element_size()),
        num_warps=4,
        num_stages=stages(latent, width - latent, queries.element_size(), gpu_limits.shared_memory(queries.device)),
    )


def stages(latent: int, rope: int, item: int, shared_memory: int) -> int:
    """Tiles of keys under way in a block with so much shared memory."""
    tile = BLOCK_KEYS[item] * (_tile(latent) + _tile(rope)) * item
    return min(max((shared_memory - _OTHER_SHARED_MEMORY) // tile, 1), _MOST_STAGES)


@torch.library.custom_op("dslite::merge_values", mutates_args=("out",))
def launch_merge_values(sums: Tensor, logs: Tensor, kv_b: Tensor, out: Tensor, nope: int) -> None:
    """Splits (T, H, P, C) and their logs (T, H, P) merged, times W_UV of kv_b: values out (T, H, V). One launch."""
    tokens, heads, splits, latent = sums.shape
    value = out.shape[2]
    value_tile = min(VALUE_TILE, _tile(value))
    merge_values[(heads, triton.cdiv(value, value_tile), tokens)](
        sums,
        logs,
        kv_b,
        out,
        heads=heads,
        nope=nope,
        value=value,
        latent=latent,
        splits=splits,
        split_tile=triton.next_power_of_2(splits),
        value_tile=value_tile,
        step=min(MERGE_STEP, _tile(latent)),
        num_warps=MERGE_WARPS,
    )
