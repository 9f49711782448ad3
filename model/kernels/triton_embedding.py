"""What a step on a GPU begins with: the tokens' embeddings and the rotation of their positions, in one launch."""

# T tokens  D hidden  P = R/2 pairs that rotate together

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # values of an embedding that a program copies


@triton.jit
def embed(
    state,  # (T, 2 + layers) int64
    table,  # (vocabulary, D), or the rows of the tokens (T, D)
    frequencies,  # (P,) float32
    hidden,  # (T, D)
    factors,  # (T, P, 2) float32
    amplitude,
    state_width: tl.constexpr,
    by_token: tl.constexpr,
    width: tl.constexpr,
    pairs: tl.constexpr,
    pair_tile: tl.constexpr,
    block: tl.constexpr,
):
    """Some values of a token's embedding; the first program of a token makes cosines and sines of its position too."""
    token, part = tl.program_id(0), tl.program_id(1)
    state += token * state_width
    row = tl.load(state) if by_token else token.to(tl.int64)
    at = part * block + tl.arange(0, block)
    tl.store(hidden + token * width + at, tl.load(table + row * width + at, mask=at < width), mask=at < width)
    if part == 0:
        pair = tl.arange(0, pair_tile)
        there = pair < pairs
        angle = tl.load(state + 1).to(tl.float32) * tl.load(frequencies + pair, mask=there, other=0.0)
        own = factors + (token * pairs + pair) * 2
        tl.store(own, tl.cos(angle) * amplitude, mask=there)
        tl.store(own + 1, tl.sin(angle) * amplitude, mask=there)


@torch.library.custom_op("dslite::embed", mutates_args=("hidden", "factors"))
def launch_embed(
    state: Tensor,
    table: Tensor,
    frequencies: Tensor,
    hidden: Tensor,
    factors: Tensor,
    amplitude: float,
    by_token: bool,
) -> None:
    """hidden (T, D) and rotation factors (T, P, 2) of the tokens and positions in `state`. One launch.

    `by_token`: `table` (vocabulary, D) is indexed by token id; else it holds the tokens' rows (T, D).
    """
    tokens, width = hidden.shape
    pairs = len(frequencies)
    embed[(tokens, triton.cdiv(width, BLOCK))](
        state,
        table,
        frequencies,
        hidden,
        factors,
        amplitude,
        state_width=state.shape[1],
        by_token=by_token,
        width=width,
        pairs=pairs,
        pair_tile=triton.next_power_of_2(pairs),
        block=BLOCK,
        num_warps=4,
    )
