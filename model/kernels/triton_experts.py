"""Router and experts of one token on a GPU, in two launches: the device chooses experts and reads their addresses.

A table holds the addresses of all experts, which may be allocated one by one, in slots, or in an arena. Shared experts
come last in the table, cut into experts of a routed one's width; every token uses them with weight 1.
"""

# D hidden  E experts  K experts per token  M experts computed, shared ones included  W width of an expert

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_IN, STEP_IN = 8, 256  # gate and up: weight rows of a program, values of a row that it reads at once
ROWS_OUT, STEP_OUT = 4, 128  # down: the same, of all experts at once


@triton.jit
def choose(scores, rank, experts: tl.constexpr, expert_tile: tl.constexpr):
    """The expert of a rank, 0 for the best, and its softmax. Of equal scores the lower number is the better.

    Each expert's rank is counted rather than the best taken K times: one step, whatever the rank. A score that is not a
    number counts as the least, so that damaged weights choose experts that exist.
    """
    e = tl.arange(0, expert_tile)
    score = tl.load(scores + e, mask=e < experts, other=-3e38)
    score = tl.where(score > -3e38, score, -3e38)
    ours, theirs = score[:, None], score[None, :]
    before = (theirs > ours) | ((theirs == ours) & (e[None, :] < e[:, None]))
    mine = tl.sum(before.to(tl.int32), 1) == rank
    factors = tl.where(e < experts, tl.exp(score - tl.max(score, 0)), 0.0)
    expert = tl.sum(tl.where(mine, e, 0), 0)
    return expert, tl.sum(tl.where(mine, factors, 0.0), 0) / tl.sum(factors, 0)


@triton.jit
def gate_up(
    x,  # (D,)
    norm,  # (D,)
    scores,  # (E,) float32: the router's; anything where K is 0
    table,  # (E + M - K, 4) int64: addresses of gate, up and down, and values between neighbouring rows of down
    products,  # (M, W) float32
    ids,  # (M,) int64
    weights,  # (M,) float32
    eps,
    scaling,
    hidden: tl.constexpr,
    width: tl.constexpr,
    routed: tl.constexpr,
    chosen: tl.constexpr,
    expert_tile: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """silu(gate · rms_norm(x)) · (up · rms_norm(x)) of some rows of one expert; norm as in triton_products."""
    entry = tl.program_id(0)
    row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
    expert = routed + entry - chosen
    weight = 1.0
    if chosen > 0:
        ranked, share = choose(scores, entry, routed, expert_tile)
        if entry < chosen:
            expert = ranked
            weight = share * scaling
    if tl.program_id(1) == 0:
        tl.store(ids + entry, expert.to(tl.int64))
        tl.store(weights + entry, weight)
    kind = tl.pointer_type(x.dtype.element_ty)
    gate = tl.load(table + expert * 4).to(kind)
    up = tl.load(table + expert * 4 + 1).to(kind)
    if aligned:
        gate = tl.multiple_of(gate, 16)
        up = tl.multiple_of(up, 16)
    gates = tl.zeros((rows_tile, step), tl.float32)
    ups = tl.zeros((rows_tile, step), tl.float32)
    squares = tl.zeros((step,), tl.float32)
    for start in range(0, hidden, step):
        at = start + tl.arange(0, step)
        value = tl.load(x + at, mask=at < hidden, other=0.0).to(tl.float32)
        scaled = value * tl.load(norm + at, mask=at < hidden, other=0.0).to(tl.float32)
        place = row[:, None] * hidden + at[None, :]
        there = (row < width)[:, None] & (at < hidden)[None, :]
        gates += tl.load(gate + place, mask=there, other=0.0).to(tl.float32) * scaled[None, :]
        ups += tl.load(up + place, mask=there, other=0.0).to(tl.float32) * scaled[None, :]
        squares += value * value
    factor = tl.rsqrt(tl.sum(squares, 0) / hidden + eps)
    g, u = tl.sum(gates, 1) * factor, tl.sum(ups, 1) * factor
    tl.store(products + entry * width + row, g / (1 + tl.exp(-g)) * u, mask=row < width)


@triton.jit
def down_combine(
    products,  # (M, W) float32
    table,  # (E + M - K, 4) int64
    ids,  # (M,) int64
    weights,  # (M,) float32
    residual,  # (D,)
    out,  # (D,)
    hidden: tl.constexpr,
    width: tl.constexpr,
    entries: tl.constexpr,
    entry_tile: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """Some values of residual + the weighted sum of down · product over all experts, which are read side by side."""
    entry = tl.arange(0, entry_tile)
    row = tl.program_id(0) * rows_tile + tl.arange(0, rows_tile)
    used = entry < entries
    expert = tl.load(ids + entry, mask=used, other=0)
    weight = tl.load(weights + entry, mask=used, other=0.0)
    down = tl.load(table + expert * 4 + 2, mask=used, other=0)
    stride = tl.load(table + expert * 4 + 3, mask=used, other=0)
    if aligned:
        down = tl.multiple_of(down, [16])
        stride = tl.multiple_of(stride, [8])
    kind = tl.pointer_type(out.dtype.element_ty)
    rows = down.to(kind)[:, None] + row[None, :] * stride[:, None]  # (M, rows)
    sums = tl.zeros((entry_tile, rows_tile, step), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        there = used[:, None] & (at < width)[None, :]
        value = tl.load(products + entry[:, None] * width + at[None, :], mask=there, other=0.0)
        part = tl.load(
            rows[:, :, None] + at[None, None, :], mask=there[:, None, :] & (row < hidden)[None, :, None], other=0.0
        )
        sums += part.to(tl.float32) * value[:, None, :]
    total = tl.sum(tl.sum(sums, 2) * weight[:, None], 0)
    element = out.dtype.element_ty
    mixed = total.to(element).to(tl.float32) + tl.load(residual + row, mask=row < hidden, other=0.0).to(tl.float32)
    tl.store(out + row, mixed.to(element), mask=row < hidden)


@torch.library.custom_op("dslite::gate_up", mutates_args=("products", "ids", "weights"))
def launch_gate_up(
    x: Tensor,
    norm: Tensor,
    scores: Tensor,
    table: Tensor,
    products: Tensor,
    ids: Tensor,
    weights: Tensor,
    chosen: int,
    scaling: float,
    eps: float,
) -> None:
    """Choose `chosen` experts by scores (E,) and compute the inner products (M, W) of rms_norm(x) (D,). One launch.

    ids and weights (M,) tell the next launch what was chosen; the shared experts stand behind with weight 1.
    """
    entries, width = products.shape
    routed = len(table) - entries + chosen
    gate_up[(entries, triton.cdiv(width, ROWS_IN))](
        x,
        norm,
        scores,
        table,
        products,
        ids,
        weights,
        eps,
        scaling,
        hidden=x.shape[0],
        width=width,
        routed=routed,
        chosen=chosen,
        expert_tile=triton.next_power_of_2(max(routed, 2)),
        rows_tile=ROWS_IN,
        step=min(STEP_IN, triton.next_power_of_2(x.shape[0])),
        aligned=x.shape[0] % 8 == 0,  # then sixteen bytes are read at once
        num_warps=4,
    )


@torch.library.custom_op("dslite::down_combine", mutates_args=("out",))
def launch_down_combine(
    products: Tensor, table: Tensor, ids: Tensor, weights: Tensor, residual: Tensor, out: Tensor
) -> None:
    """residual (D,) + the sum over experts ids (M,) of weights (M,) · down · products (M, W): out (D,). One launch."""
    entries, width = products.shape
    entry_tile = triton.next_power_of_2(entries)
    step = min(STEP_OUT if entries > 2 else 8 * STEP_OUT, triton.next_power_of_2(width))
    down_combine[(triton.cdiv(out.shape[0], ROWS_OUT),)](
        products,
        table,
        ids,
        weights,
        residual,
        out,
        hidden=out.shape[0],
        width=width,
        entries=entries,
        entry_tile=entry_tile,
        rows_tile=ROWS_OUT,
        step=step,
        aligned=width % 8 == 0,
        num_warps=4,
    )


def address_table(
    routed: Sequence[tuple[Tensor, Tensor, Tensor]], shared: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """Gate, up and down of the routed experts and of the shared MLP, as a table (E, 4) int64 on their device.

    A dense MLP is a shared one with no expert beside it. The tensors must stay where they are for as long as the table
    is used.
    """
    lines = [[gate.data_ptr(), up.data_ptr(), down.data_ptr(), down.stride(0)] for gate, up, down in routed]
    if shared is not None:
        gate, up, down = shared
        width = routed[0][0].shape[0] if routed else gate.shape[0]
        for first in range(0, gate.shape[0], width):
            parts = gate[first], up[first], down[:, first:]
            lines.append([*(part.data_ptr() for part in parts), down.stride(0)])
    first_tensors = [*routed, *([] if shared is None else [shared])]
    assert all(gate.data_ptr() % 16 == 0 for gate, _, _ in first_tensors), "torch allocates at multiples of 16 bytes"
    return torch.tensor(lines, dtype=torch.int64, device=first_tensors[0][0].device)
