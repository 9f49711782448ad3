"""Routed experts of a few tokens on a GPU where only some experts lie in slots there.

A table on the device has the addresses of each expert, zero for one that is in no slot. The device computes what the
table has, and numbers what it has not: the outputs of these arrive from the host, or are computed by a second table
once their experts have arrived. Every output has a place of its own, and all are added in one order, so that the sum
does not depend on what is in the slots.
"""

# T tokens  D hidden  E experts  K experts per token  M experts computed of a token, shared ones last  W their width

import torch
import triton
import triton.language as tl
from torch import Tensor

from dslite.model.kernels import triton_experts
from dslite.model.kernels.triton_experts import choose, expert_matrix
from dslite.model.kernels.triton_products import load_weights

# As triton_experts.TILE_IN and TILE_OUT: (weight rows of a program, values of a row that it reads at once, warps).
TILE_IN, TILE_OUT = (4, 2048, 8), (8, 512, 4)
ROUTE_STEP, COMBINE_STEP = 1024, 512


@triton.jit
def route_tokens(
    x,  # (T, D)
    norm,  # (D,)
    scores,  # (T, E) float32
    ids,  # (T, M) int64
    weights,  # (T, M) float32
    normed,  # (T, D)
    eps,
    scaling,
    hidden: tl.constexpr,
    routed: tl.constexpr,
    chosen: tl.constexpr,
    entries: tl.constexpr,
    expert_tile: tl.constexpr,
    step: tl.constexpr,
):
    """The expert of one rank of one token, and its weight; the program of the first rank also norms the token's x."""
    token, entry = tl.program_id(0), tl.program_id(1)
    ranked, share = choose(scores + token * routed, entry, routed, expert_tile)
    expert = tl.where(entry < chosen, ranked, routed + entry - chosen)
    tl.store(ids + token * entries + entry, expert.to(tl.int64))
    tl.store(weights + token * entries + entry, tl.where(entry < chosen, share * scaling, 1.0))
    if entry == 0:
        x += token * hidden
        squares = tl.zeros((step,), tl.float32)
        for start in range(0, hidden, step):
            at = start + tl.arange(0, step)
            value = tl.load(x + at, mask=at < hidden, other=0.0).to(tl.float32)
            squares += value * value
        factor = tl.rsqrt(tl.sum(squares, 0) / hidden + eps)
        for start in range(0, hidden, step):
            at = start + tl.arange(0, step)
            value = tl.load(x + at, mask=at < hidden, other=0.0).to(tl.float32) * factor
            scaled = value * tl.load(norm + at, mask=at < hidden, other=0.0).to(tl.float32)
            tl.store(normed + token * hidden + at, scaled.to(normed.dtype.element_ty), mask=at < hidden)


@triton.jit
def gate_up_slots(
    x,  # (T, D)
    norm,  # (D,)
    table,  # (E + M - K, 4) int64: as triton_experts.gate_up, zero where an expert is in no slot
    ids,  # (T, M) int64
    products,  # (T, M, W) float32
    eps,
    hidden: tl.constexpr,
    width: tl.constexpr,
    entries: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """triton_experts.gate_up of one expert of one token, if the table has it."""
    place = tl.program_id(0)
    row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
    expert = tl.load(ids + place)
    if tl.load(table + expert * 4) != 0:
        x += place // entries * hidden
        gate = expert_matrix(table, expert, 0, x, aligned)
        up = expert_matrix(table, expert, 1, x, aligned)
        gates = tl.zeros((rows_tile, step), tl.float32)
        ups = tl.zeros((rows_tile, step), tl.float32)
        squares = tl.zeros((step,), tl.float32)
        for start in range(0, hidden, step):
            at = start + tl.arange(0, step)
            value = tl.load(x + at, mask=at < hidden, other=0.0).to(tl.float32)
            scaled = value * tl.load(norm + at, mask=at < hidden, other=0.0).to(tl.float32)
            gates += load_weights(gate, row, at, width, hidden).to(tl.float32) * scaled[None, :]
            ups += load_weights(up, row, at, width, hidden).to(tl.float32) * scaled[None, :]
            squares += value * value
        factor = tl.rsqrt(tl.sum(squares, 0) / hidden + eps)
        g, u = tl.sum(gates, 1) * factor, tl.sum(ups, 1) * factor
        tl.store(products + place * width + row, g / (1 + tl.exp(-g)) * u, mask=row < width)


@triton.jit
def down_slots(
    products,  # (T, M, W) float32
    table,  # (E + M - K, 4) int64
    ids,  # (T, M) int64
    parts,  # (T, M, D) float32
    missing,  # (T, M) int64
    hidden: tl.constexpr,
    width: tl.constexpr,
    place_tile: tl.constexpr,
    first: tl.constexpr,
    like: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """Some values of down · product of one expert of one token, if the table has it; then `missing` is -1.

    With `first`, the others are numbered: token by token, in the order of ids. `like` is the type of the weights.
    """
    place = tl.program_id(0)
    row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
    expert = tl.load(ids + place)
    down_at = tl.load(table + expert * 4 + 2)
    if first:  # noqa: SIM102 - known when the kernel is compiled; the rest is not
        if (down_at == 0) & (tl.program_id(1) == 0):
            other = tl.arange(0, place_tile)
            others = tl.load(ids + other, mask=other < place, other=0)
            there = tl.load(table + others * 4 + 2, mask=other < place, other=1)
            tl.store(missing + place, tl.sum((there == 0).to(tl.int32), 0).to(tl.int64))
    if down_at != 0:
        down = down_at.to(tl.pointer_type(like))
        stride = tl.load(table + expert * 4 + 3)
        if aligned:
            down = tl.multiple_of(down, 16)
            stride = tl.multiple_of(stride, 8)
        sums = tl.zeros((rows_tile, step), tl.float32)
        for start in range(0, width, step):
            at = start + tl.arange(0, step)
            value = tl.load(products + place * width + at, mask=at < width, other=0.0)
            mask = (row < hidden)[:, None] & (at < width)[None, :]
            weight = tl.load(down + row[:, None] * stride + at[None, :], mask=mask, other=0.0)
            sums += weight.to(tl.float32) * value[None, :]
        tl.store(parts + place * hidden + row, tl.sum(sums, 1), mask=row < hidden)
        if tl.program_id(1) == 0:
            tl.store(missing + place, -1)


@triton.jit
def combine_slots(
    parts,  # (T, M, D) float32
    arrived,  # (any, D) float32: outputs from the host, in the order of their numbers
    missing,  # (T, M) int64
    weights,  # (T, M) float32
    residual,  # (T, D)
    out,  # (T, D)
    hidden: tl.constexpr,
    entries: tl.constexpr,
    entry_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some values of one token's residual + the weighted sum of its experts' outputs, rounded as down_combine does."""
    token, entry = tl.program_id(0), tl.arange(0, entry_tile)
    at = tl.program_id(1) * step + tl.arange(0, step)
    used = entry < entries
    number = tl.load(missing + token * entries + entry, mask=used, other=-1)
    here = (used & (number < 0))[:, None] & (at < hidden)[None, :]
    there = (number >= 0)[:, None] & (at < hidden)[None, :]
    part = tl.load(parts + (token * entries + entry)[:, None] * hidden + at[None, :], mask=here, other=0.0)
    part += tl.load(arrived + number[:, None] * hidden + at[None, :], mask=there, other=0.0)
    weight = tl.load(weights + token * entries + entry, mask=used, other=0.0)
    total = tl.sum(part * weight[:, None], 0)
    element = out.dtype.element_ty
    place = token * hidden + at
    mixed = total.to(element).to(tl.float32) + tl.load(residual + place, mask=at < hidden, other=0.0).to(tl.float32)
    tl.store(out + place, mixed.to(element), mask=at < hidden)


@torch.library.custom_op("dslite::route_tokens", mutates_args=("ids", "weights", "normed"))
def launch_route(
    x: Tensor,
    norm: Tensor,
    scores: Tensor,
    ids: Tensor,
    weights: Tensor,
    normed: Tensor,
    chosen: int,
    scaling: float,
    eps: float,
) -> None:
    """Choose experts ids (T, M) by scores (T, E), with weights (T, M); norm x (T, D) for the host. One launch."""
    tokens, hidden = x.shape
    entries, routed = ids.shape[1], scores.shape[1]
    route_tokens[(tokens, entries)](
        x,
        norm,
        scores,
        ids,
        weights,
        normed,
        eps,
        scaling,
        hidden=hidden,
        routed=routed,
        chosen=chosen,
        entries=entries,
        expert_tile=triton.next_power_of_2(max(routed, 2)),
        step=min(ROUTE_STEP, triton.next_power_of_2(hidden)),
        num_warps=4,
    )


@torch.library.custom_op("dslite::gate_up_slots", mutates_args=("products",))
def launch_gate_up(x: Tensor, norm: Tensor, table: Tensor, ids: Tensor, products: Tensor, eps: float) -> None:
    """The inner products (T, M, W) of those experts ids (T, M) of rms_norm(x) (T, D) that the table has. One launch."""
    hidden = x.shape[1]
    tokens, entries, width = products.shape
    rows, most, warps = TILE_IN
    gate_up_slots[(tokens * entries, triton.cdiv(width, rows))](
        x,
        norm,
        table,
        ids,
        products,
        eps,
        hidden=hidden,
        width=width,
        entries=entries,
        rows_tile=rows,
        step=min(most, max(16, triton.next_power_of_2(hidden))),
        aligned=hidden % 8 == 0,
        num_warps=warps,
    )


@torch.library.custom_op("dslite::down_slots", mutates_args=("parts", "missing"))
def launch_down(
    products: Tensor, table: Tensor, ids: Tensor, parts: Tensor, missing: Tensor, item: int, first: bool
) -> None:
    """down · products (T, M, W) of the experts ids (T, M) that the table has: parts (T, M, D). One launch.

    A weight has `item` bytes. `missing` (T, M) is -1 for them; with `first` the others are numbered from zero.
    """
    tokens, entries, width = products.shape
    hidden = parts.shape[2]
    rows, most, warps = TILE_OUT
    down_slots[(tokens * entries, triton.cdiv(hidden, rows))](
        products,
        table,
        ids,
        parts,
        missing,
        hidden=hidden,
        width=width,
        place_tile=triton.next_power_of_2(tokens * entries),
        first=first,
        like=tl.bfloat16 if item == 2 else tl.float32,
        rows_tile=rows,
        step=min(most, triton.next_power_of_2(width)),
        aligned=width % 8 == 0,
        num_warps=warps,
    )


@torch.library.custom_op("dslite::combine_slots", mutates_args=("out",))
def launch_combine(
    parts: Tensor, arrived: Tensor, missing: Tensor, weights: Tensor, residual: Tensor, out: Tensor
) -> None:
    """residual (T, D) + the sum by weights (T, M) of parts (T, M, D), and of arrived (any, D) by `missing`: out."""
    tokens, entries, hidden = parts.shape
    step = min(COMBINE_STEP, triton.next_power_of_2(hidden))
    combine_slots[(tokens, triton.cdiv(hidden, step))](
        parts,
        arrived,
        missing,
        weights,
        residual,
        out,
        hidden=hidden,
        entries=entries,
        entry_tile=triton.next_power_of_2(entries),
        step=step,
        num_warps=4,
    )


def slot_table(
    n_experts: int, shared: tuple[Tensor, Tensor, Tensor] | None, width: int, device: torch.device
) -> Tensor:
    """A table of no routed expert, and of the shared MLP cut into experts of `width` rows."""
    if shared is None:
        return torch.zeros(n_experts, 4, dtype=torch.int64, device=device)
    gate, up, down = shared
    table = triton_experts.address_table([(gate[:width], up[:width], down[:, :width])] * n_experts, shared)
    table[:n_experts].zero_()
    return table
