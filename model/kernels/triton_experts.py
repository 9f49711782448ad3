"""The routed and the shared experts of few tokens on a GPU: two launches, ids and addresses read on the device.

Experts are found through a table of addresses, so that they may lie anywhere: one by one, in slots, in an arena. Shared
experts are the last of the table, as so many experts of a routed one's width, and every token has them with weight 1.
"""

# T tokens  D hidden  E experts  K experts per token, shared ones included  W width of an expert

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_IN, ROWS_OUT, STEP = 8, 8, 256  # weight rows of a program, values of a row that it reads at once


@triton.jit
def gate_up(
    x,  # (T, D)
    table,  # (E, 4) int64: addresses of gate, up and down, and values between neighbouring rows of down
    ids,  # (T, chosen) int64
    products,  # (T, K, W) float32
    hidden: tl.constexpr,
    width: tl.constexpr,
    routed: tl.constexpr,
    chosen: tl.constexpr,
    entries: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """silu(gate · x) · (up · x) of some rows of one expert of one token."""
    token, entry = tl.program_id(0), tl.program_id(1)
    row = tl.program_id(2) * rows_tile + tl.arange(0, rows_tile)
    expert = tl.load(ids + token * chosen + entry, mask=entry < chosen, other=routed + entry - chosen)
    kind = tl.pointer_type(x.dtype.element_ty)
    gate = tl.load(table + expert * 4).to(kind)
    up = tl.load(table + expert * 4 + 1).to(kind)
    if aligned:
        gate = tl.multiple_of(gate, 16)
        up = tl.multiple_of(up, 16)
    gates = tl.zeros((rows_tile, step), tl.float32)
    ups = tl.zeros((rows_tile, step), tl.float32)
    for start in range(0, hidden, step):
        at = start + tl.arange(0, step)
        value = tl.load(x + token * hidden + at, mask=at < hidden, other=0.0).to(tl.float32)
        place = row[:, None] * hidden + at[None, :]
        there = (row < width)[:, None] & (at < hidden)[None, :]
        gates += tl.load(gate + place, mask=there, other=0.0).to(tl.float32) * value[None, :]
        ups += tl.load(up + place, mask=there, other=0.0).to(tl.float32) * value[None, :]
    g, u = tl.sum(gates, 1), tl.sum(ups, 1)
    out = products + (token * entries + entry) * width + row
    tl.store(out, g / (1 + tl.exp(-g)) * u, mask=row < width)


@triton.jit
def down_combine(
    products,  # (T, K, W) float32
    table,  # (E, 4) int64
    ids,  # (T, chosen) int64
    weights,  # (T, chosen) float32
    out,  # (T, D)
    hidden: tl.constexpr,
    width: tl.constexpr,
    routed: tl.constexpr,
    chosen: tl.constexpr,
    entries: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """Some values of one token's output: over its experts, weight times down · product, added in their order."""
    token = tl.program_id(0)
    row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
    kind = tl.pointer_type(out.dtype.element_ty)
    total = tl.zeros((rows_tile,), tl.float32)
    for entry in range(entries):
        choice = token * chosen + entry
        expert = tl.load(ids + choice, mask=entry < chosen, other=routed + entry - chosen)
        weight = tl.load(weights + choice, mask=entry < chosen, other=1.0)
        down = tl.load(table + expert * 4 + 2).to(kind)
        stride = tl.load(table + expert * 4 + 3)
        if aligned:
            down = tl.multiple_of(down, 16)
            stride = tl.multiple_of(stride, 8)
        sums = tl.zeros((rows_tile, step), tl.float32)
        for start in range(0, width, step):
            at = start + tl.arange(0, step)
            value = tl.load(products + (token * entries + entry) * width + at, mask=at < width, other=0.0)
            there = (row < hidden)[:, None] & (at < width)[None, :]
            part = tl.load(down + row[:, None] * stride + at[None, :], mask=there, other=0.0)
            sums += part.to(tl.float32) * value[None, :]
        total += weight * tl.sum(sums, 1)
    tl.store(out + token * hidden + row, total.to(out.dtype.element_ty), mask=row < hidden)


@torch.library.custom_op("dslite::mixed_experts", mutates_args=())
def mixed_experts(
    hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: Tensor, routed: int, width: int
) -> Tensor:
    """hidden (T, D), ids (T, K) int64, weights (T, K) float32: routed and shared experts added, (T, D).

    `table` comes from `address_table`; its first `routed` experts can be chosen, those behind are always used. The
    reference is moe.MoE.mix.
    """
    tokens, size = hidden.shape
    chosen = expert_ids.shape[1]
    entries = chosen + len(table) - routed
    products = torch.empty(tokens, entries, width, dtype=torch.float32, device=hidden.device)
    out = torch.empty_like(hidden)
    sizes = {
        "hidden": size,
        "width": width,
        "routed": routed,
        "chosen": chosen,
        "entries": entries,
        "step": STEP,
        "aligned": size % 8 == width % 8 == 0,  # then sixteen bytes are read at once
        "num_warps": 4,
    }
    gate_up[(tokens, entries, triton.cdiv(width, ROWS_IN))](
        hidden, table, expert_ids, products, rows_tile=ROWS_IN, **sizes
    )
    down_combine[(tokens, triton.cdiv(size, ROWS_OUT))](
        products, table, expert_ids, weights, out, rows_tile=ROWS_OUT, **sizes
    )
    return out


@mixed_experts.register_fake
def _(hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: Tensor, routed: int, width: int) -> Tensor:
    return torch.empty_like(hidden)


def address_table(
    routed: Sequence[tuple[Tensor, Tensor, Tensor]], shared: tuple[Tensor, Tensor, Tensor] | None
) -> Tensor:
    """Gate, up and down of the routed experts and of the shared MLP, as a table (E, 4) int64 on their device.

    The tensors must stay where they are for as long as the table is used.
    """
    lines = [[gate.data_ptr(), up.data_ptr(), down.data_ptr(), down.stride(0)] for gate, up, down in routed]
    if shared is not None:
        width = routed[0][0].shape[0]
        gate, up, down = shared
        for first in range(0, gate.shape[0], width):
            parts = gate[first], up[first], down[:, first:]
            lines.append([*(part.data_ptr() for part in parts), down.stride(0)])
    assert all(gate.data_ptr() % 16 == 0 for gate, _, _ in routed), "torch allocates at multiples of 16 bytes"
    return torch.tensor(lines, dtype=torch.int64, device=routed[0][0].device)
