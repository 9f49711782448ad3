"""Drawing the next token of each of a few sequences on a GPU, in two launches: one number a sequence comes to the host.

A draw is a race (runtime/engine/sampling.py): every token has an exponential variate hashed from the seed, the position
and its id, and the one with the least variate / probability wins. In logarithms it is the greatest
logit / temperature - log(variate), so that probabilities need no sum.
"""

# B sequences  V vocabulary  N blocks of it

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # logits of a program
INVERSE_TEMPERATURE, NOISE, KEY = range(3)  # columns of `numbers`: bits of a float64, 0 or 1, 64 bits


@triton.jit
def mixed(value):
    """The output function of SplitMix64 of unsigned numbers."""
    value += 0x9E3779B97F4A7C15
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@triton.jit
def race(
    logits,  # (B, V) float32
    numbers,  # (B, 3) int64
    least,  # (B,) float32: the smallest logit that takes part
    best,  # (B, N) float64: of a block, NaN where a logit is NaN or infinite
    where,  # (B, N) int64: its token
    stride,
    tokens,
    blocks: tl.constexpr,
    tile: tl.constexpr,
):
    """The best token of a block of logits; of equal ones the lower id. Infinitely negative logits never win."""
    row, block = tl.program_id(0), tl.program_id(1)
    token = block * tile + tl.arange(0, tile)
    logit = tl.load(logits + row.to(tl.int64) * stride + token, mask=token < tokens, other=float("-inf"))
    inverse = tl.load(numbers + row * 3).to(tl.float64, bitcast=True)
    noisy = tl.load(numbers + row * 3 + 1)
    key = tl.load(numbers + row * 3 + 2).to(tl.uint64)
    value = logit.to(tl.float64) * inverse
    if noisy != 0:
        bits = mixed(mixed(token.to(tl.uint64) + key) ^ key)
        uniform = ((bits >> 11).to(tl.float64) + 0.5) * 1.1102230246251565e-16  # 2^-53
        value -= tl.log(-tl.log(uniform))
    value = tl.where((logit >= tl.load(least + row)) & (logit > float("-inf")), value, float("-inf"))
    greatest = tl.max(value, 0)
    winner = tl.min(tl.where(value == greatest, token, tokens), 0)
    damaged = tl.sum((~(logit < float("inf"))).to(tl.int32), 0) > 0
    tl.store(best + row * blocks + block, tl.where(damaged, float("nan"), greatest))
    tl.store(where + row * blocks + block, winner.to(tl.int64))


@triton.jit
def finish(
    best,  # (B, N) float64
    where,  # (B, N) int64
    drawn,  # (B,) int64
    blocks: tl.constexpr,
    tile: tl.constexpr,
):
    """The winner of a sequence's blocks, or -1 where a logit was not finite."""
    row, block = tl.program_id(0), tl.arange(0, tile)
    there = block < blocks
    value = tl.load(best + row * blocks + block, mask=there, other=float("-inf"))
    token = tl.load(where + row * blocks + block, mask=there, other=0)
    damaged = tl.sum((value != value).to(tl.int32), 0) > 0
    greatest = tl.max(tl.where(value == value, value, float("-inf")), 0)
    winner = tl.min(tl.where((value == greatest) & there, token, 1 << 40), 0)
    tl.store(drawn + row, tl.where(damaged, -1, winner))


@torch.library.custom_op("dslite::race", mutates_args=("best", "where"))
def launch_race(logits: Tensor, numbers: Tensor, least: Tensor, best: Tensor, where: Tensor, tokens: int) -> None:
    """Best value and token (B, N) of each block of the first `tokens` of logits (B, V). One launch."""
    rows, blocks = best.shape
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        race[(rows, blocks)](
            logits, numbers, least, best, where, logits.stride(0), tokens, blocks=blocks, tile=BLOCK, num_warps=4
        )


@torch.library.custom_op("dslite::finish", mutates_args=("drawn",))
def launch_finish(best: Tensor, where: Tensor, drawn: Tensor) -> None:
    """The winners (B,) of the blocks (B, N). One launch."""
    rows, blocks = best.shape
    with torch.cuda.device_of(best):
        finish[(rows,)](best, where, drawn, blocks=blocks, tile=triton.next_power_of_2(blocks), num_warps=1)


def draw(logits: Tensor, numbers: Tensor, least: Tensor, tokens: int) -> Tensor:
    """The tokens (B,) int64 that win of logits (B, V) float32; -1 where a logit is NaN or infinite.

    `numbers` (B, 3) int64, `least` (B,) float32, on the logits' device. Ids from `tokens` on are never drawn.
    """
    rows, blocks = len(logits), triton.cdiv(tokens, BLOCK)
    best = torch.empty(rows, blocks, dtype=torch.float64, device=logits.device)
    where = torch.empty(rows, blocks, dtype=torch.int64, device=logits.device)
    drawn = torch.empty(rows, dtype=torch.int64, device=logits.device)
    launch_race(logits, numbers, least, best, where, tokens)
    launch_finish(best, where, drawn)
    return drawn
