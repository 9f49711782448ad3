"""Router and experts of a few tokens on a GPU, in two launches: the device chooses experts and reads their addresses.

A table holds the addresses of all experts, which may be allocated one by one, in slots, or in an arena. Shared experts
come last in the table, cut into experts of a routed one's width; every token uses them with weight 1.
"""

# T tokens  D hidden  E experts  K experts per token  M experts computed of a token, shared ones last  W their width

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dslite.model.kernels.triton_products import TOKEN_TILE, load_weights

# The fastest of 60 shapes each, measured on an H100 at Lite's size: (weight rows of a program, values of a row that it
# reads at once, warps). Gate and up took 34.6 us for 92 MB (38.6 at 8, 256, 4), down 21.5 us for 46 MB.
TILE_IN, TILE_OUT = (4, 2048, 8), (2, 128, 2)
# The same for several tokens; values at once are bytes, so that two tiles of gate and up fit into shared memory.
TOKEN_TILE_IN, TOKEN_TILE_OUT = (64, 256, 4), (2, 128, 4)
TOKEN_STAGES_IN = 2
# Down, expert by expert for all its tokens: 112 us for 16 tokens, where token by token took 208.
TOKEN_TILE_DOWN, TOKEN_STAGES_DOWN, COMBINE_STEP = (64, 256, 4), 3, 512


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
def expert_matrix(table, expert, part: tl.constexpr, like, aligned: tl.constexpr):
    """The address of an expert's gate (0), up (1) or down (2), as a pointer of the kind of `like`."""
    matrix = tl.load(table + expert * 4 + part).to(tl.pointer_type(like.dtype.element_ty))
    return tl.multiple_of(matrix, 16) if aligned else matrix


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
    tl.store(products + entry * width + row, g / (1 + tl.exp(-g)) * u, mask=row < width)


@triton.jit(do_not_specialize=["tokens"])
def gate_up_tokens(
    x,  # (T, D)
    norm,  # (D,)
    scores,  # (T, E) float32: the router's; anything where K is 0
    table,  # (E + M - K, 4) int64
    products,  # (T, M, W) float32
    ids,  # (T, M) int64
    weights,  # (T, M) float32
    eps,
    scaling,
    tokens,
    token_tile: tl.constexpr,
    entries: tl.constexpr,
    hidden: tl.constexpr,
    width: tl.constexpr,
    routed: tl.constexpr,
    chosen: tl.constexpr,
    expert_tile: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """The same rows of one expert for all tokens that chose it, so that its weights are read once for all of them.

    The programs of an expert which no token chose end here. What choose() finds of one rank is found of one expert.
    """
    expert, t = tl.program_id(0), tl.arange(0, token_tile)
    uses = t < tokens
    rank = tl.full((token_tile,), chosen - routed, tl.int32) + expert
    weight = tl.full((token_tile,), 1.0, tl.float32)
    if chosen > 0:  # noqa: SIM102 - known when the kernel is compiled; the expert is not
        if expert < routed:
            e = tl.arange(0, expert_tile)
            there = uses[:, None] & (e < routed)[None, :]
            score = tl.load(scores + t[:, None] * routed + e[None, :], mask=there, other=-3e38)
            score = tl.where(score > -3e38, score, -3e38)
            own = tl.max(tl.where(e[None, :] == expert, score, float("-inf")), 1)
            before = (score > own[:, None]) | ((score == own[:, None]) & (e < expert)[None, :])
            rank = tl.sum(before.to(tl.int32), 1)
            greatest = tl.max(score, 1)
            total = tl.sum(tl.where((e < routed)[None, :], tl.exp(score - greatest[:, None]), 0.0), 1)
            weight = tl.exp(own - greatest) / total * scaling
            uses = uses & (rank < chosen)
    if tl.program_id(1) == 0:
        tl.store(ids + t * entries + rank, tl.zeros((token_tile,), tl.int64) + expert, mask=uses)
        tl.store(weights + t * entries + rank, weight, mask=uses)
    if tl.sum(uses.to(tl.int32), 0) > 0:
        row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
        gate = expert_matrix(table, expert, 0, x, aligned)
        up = expert_matrix(table, expert, 1, x, aligned)
        gates = tl.zeros((rows_tile, token_tile), tl.float32)
        ups = tl.zeros((rows_tile, token_tile), tl.float32)
        squares = tl.zeros((token_tile, step), tl.float32)
        for start in range(0, hidden, step):
            at = start + tl.arange(0, step)
            place = x + t[:, None] * hidden + at[None, :]
            value = tl.load(place, mask=uses[:, None] & (at < hidden)[None, :], other=0.0).to(tl.float32)
            scaled = value * tl.load(norm + at, mask=at < hidden, other=0.0).to(tl.float32)[None, :]
            squares += value * value
            columns = tl.trans(scaled.to(x.dtype.element_ty))
            gates = tl.dot(load_weights(gate, row, at, width, hidden), columns, gates, input_precision="ieee")
            ups = tl.dot(load_weights(up, row, at, width, hidden), columns, ups, input_precision="ieee")
        factor = tl.rsqrt(tl.sum(squares, 1) / hidden + eps)[None, :]
        g, u = gates * factor, ups * factor
        own_products = products + (t * entries + rank)[None, :] * width + row[:, None]
        tl.store(own_products, g / (1 + tl.exp(-g)) * u, mask=uses[None, :] & (row < width)[:, None])


@triton.jit
def down_combine(
    products,  # (T, M, W) float32
    table,  # (E + M - K, 4) int64
    ids,  # (T, M) int64
    weights,  # (T, M) float32
    residual,  # (T, D)
    out,  # (T, D)
    hidden: tl.constexpr,
    width: tl.constexpr,
    entries: tl.constexpr,
    entry_tile: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """Some values of one token's residual + the weighted sum of down · product over its experts, read side by side.

    Programs of the same rows and other tokens run at the same time: what two tokens chose comes from the L2 cache once.
    """
    entry, token = tl.arange(0, entry_tile), tl.program_id(0)
    row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
    used = entry < entries
    products += token * entries * width
    expert = tl.load(ids + token * entries + entry, mask=used, other=0)
    weight = tl.load(weights + token * entries + entry, mask=used, other=0.0)
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
    place = token * hidden + row
    mixed = total.to(element).to(tl.float32) + tl.load(residual + place, mask=row < hidden, other=0.0).to(tl.float32)
    tl.store(out + place, mixed.to(element), mask=row < hidden)


@triton.jit(do_not_specialize=["tokens"])
def down_tokens(
    products,  # (T, M, W) float32
    table,  # (E + M - K, 4) int64
    ids,  # (T, M) int64
    parts,  # (T, M, D) float32
    tokens,
    token_tile: tl.constexpr,
    entries: tl.constexpr,
    entry_tile: tl.constexpr,
    hidden: tl.constexpr,
    width: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
    element: tl.constexpr,
    aligned: tl.constexpr,
):
    """Some values of down · product of one expert for all tokens that chose it: its weights are read once.

    `element` is a value of the weights' type.
    """
    expert, t, entry = tl.program_id(0), tl.arange(0, token_tile), tl.arange(0, entry_tile)
    there = (t < tokens)[:, None] & (entry < entries)[None, :]
    own = tl.load(ids + t[:, None] * entries + entry[None, :], mask=there, other=-1) == expert
    uses = tl.sum(own.to(tl.int32), 1) > 0
    if tl.sum(uses.to(tl.int32), 0) > 0:
        row = tl.program_id(1) * rows_tile + tl.arange(0, rows_tile)
        place = t * entries + tl.sum(tl.where(own, entry[None, :], 0), 1)
        down = tl.load(table + expert * 4 + 2).to(tl.pointer_type(element))
        stride = tl.load(table + expert * 4 + 3)
        if aligned:
            down = tl.multiple_of(down, 16)
            stride = tl.multiple_of(stride, 8)
        sums = tl.zeros((rows_tile, token_tile), tl.float32)
        for start in range(0, width, step):
            at = start + tl.arange(0, step)
            inner = tl.load(
                products + place[:, None] * width + at[None, :], mask=uses[:, None] & (at < width)[None, :], other=0.0
            )
            mask = (row < hidden)[:, None] & (at < width)[None, :]
            weight = tl.load(down + row[:, None] * stride + at[None, :], mask=mask, other=0.0)
            sums = tl.dot(weight, tl.trans(inner.to(element)), sums, input_precision="ieee")
        out = parts + place[None, :] * hidden + row[:, None]
        tl.store(out, sums, mask=uses[None, :] & (row < hidden)[:, None])


@triton.jit
def combine_entries(
    parts,  # (T, M, D) float32
    weights,  # (T, M) float32
    residual,  # (T, D)
    out,  # (T, D)
    hidden: tl.constexpr,
    entries: tl.constexpr,
    entry_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some values of one token's residual + the weighted sum of its experts' parts, rounded as down_combine does."""
    token, entry = tl.program_id(0), tl.arange(0, entry_tile)
    at = tl.program_id(1) * step + tl.arange(0, step)
    there = (entry < entries)[:, None] & (at < hidden)[None, :]
    part = tl.load(parts + (token * entries + entry)[:, None] * hidden + at[None, :], mask=there, other=0.0)
    weight = tl.load(weights + token * entries + entry, mask=entry < entries, other=0.0)
    total = tl.sum(part * weight[:, None], 0)
    element = out.dtype.element_ty
    place = token * hidden + at
    mixed = total.to(element).to(tl.float32) + tl.load(residual + place, mask=at < hidden, other=0.0).to(tl.float32)
    tl.store(out + place, mixed.to(element), mask=at < hidden)


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
    """Choose `chosen` experts by scores (T, E); compute the inner products (T, M, W) of rms_norm(x) (T, D). One launch.

    ids and weights (T, M) tell the next launch what was chosen; the shared experts stand behind with weight 1.
    """
    tokens, hidden = x.shape
    entries, width = products.shape[1:]
    routed = len(table) - entries + chosen
    arguments = (x, norm, scores, table, products, ids, weights, eps, scaling)
    sizes = {
        "hidden": hidden,
        "width": width,
        "routed": routed,
        "chosen": chosen,
        "expert_tile": triton.next_power_of_2(max(routed, 2)),
        "aligned": hidden % 8 == 0,  # then sixteen bytes are read at once
    }
    step = max(16, triton.next_power_of_2(hidden))
    if tokens == 1:
        rows, most, warps = TILE_IN
        grid = (entries, triton.cdiv(width, rows))
        gate_up[grid](*arguments, rows_tile=rows, step=min(most, step), num_warps=warps, **sizes)
    else:
        rows, most, warps = TOKEN_TILE_IN
        gate_up_tokens[(len(table), triton.cdiv(width, rows))](
            *arguments,
            tokens=tokens,
            token_tile=TOKEN_TILE,
            entries=entries,
            rows_tile=rows,
            step=min(most // x.element_size(), step),
            num_warps=warps,
            num_stages=TOKEN_STAGES_IN,
            **sizes,
        )


@torch.library.custom_op("dslite::down_combine", mutates_args=("out",))
def launch_down_combine(
    products: Tensor, table: Tensor, ids: Tensor, weights: Tensor, residual: Tensor, out: Tensor
) -> None:
    """residual (T, D) + the sum over experts ids (T, M) of weights (T, M) · down · products (T, M, W): out (T, D)."""
    tokens, entries, width = products.shape
    hidden = out.shape[1]
    entry_tile = triton.next_power_of_2(entries)
    rows, most, warps = TILE_OUT if tokens == 1 else TOKEN_TILE_OUT
    step = min(most if entries > 2 else 8 * most, triton.next_power_of_2(width))
    down_combine[(tokens, triton.cdiv(hidden, rows))](
        products,
        table,
        ids,
        weights,
        residual,
        out,
        hidden=hidden,
        width=width,
        entries=entries,
        entry_tile=entry_tile,
        rows_tile=rows,
        step=step,
        aligned=width % 8 == 0,
        num_warps=warps,
    )


@torch.library.custom_op("dslite::down_tokens", mutates_args=("parts",))
def launch_down_tokens(products: Tensor, table: Tensor, ids: Tensor, parts: Tensor, item: int) -> None:
    """down · products (T, M, W) of experts ids (T, M), whose values have `item` bytes: parts (T, M, D). One launch."""
    tokens, entries, width = products.shape
    hidden = parts.shape[2]
    rows, most, warps = TOKEN_TILE_DOWN
    down_tokens[(len(table), triton.cdiv(hidden, rows))](
        products,
        table,
        ids,
        parts,
        tokens=tokens,
        token_tile=TOKEN_TILE,
        entries=entries,
        entry_tile=triton.next_power_of_2(entries),
        hidden=hidden,
        width=width,
        rows_tile=rows,
        step=min(most // item, max(16, triton.next_power_of_2(width))),
        element=tl.bfloat16 if item == 2 else tl.float32,
        aligned=width % 8 == 0,
        num_warps=warps,
        num_stages=TOKEN_STAGES_DOWN,
    )


@torch.library.custom_op("dslite::combine_entries", mutates_args=("out",))
def launch_combine_entries(parts: Tensor, weights: Tensor, residual: Tensor, out: Tensor) -> None:
    """residual (T, D) + the sum of parts (T, M, D) by weights (T, M): out (T, D). One launch."""
    tokens, entries, hidden = parts.shape
    step = min(COMBINE_STEP, triton.next_power_of_2(hidden))
    combine_entries[(tokens, triton.cdiv(hidden, step))](
        parts,
        weights,
        residual,
        out,
        hidden=hidden,
        entries=entries,
        entry_tile=triton.next_power_of_2(entries),
        step=step,
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
