"""Routed experts of many tokens on a GPU: a grouped GEMM over choices sorted by expert, in four launches.

The launches are the same whatever the router chose: the grid has a tile for every block of rows there could be, and a
tile finds its expert from the counts on the device. Nothing comes to the host, and no expert has a launch of its own.
Experts are found by their addresses, so that they may lie one by one, in slots, or in an arena.
"""

# T tokens  D hidden  E experts  K experts per token  W width of an expert

import torch
import triton
import triton.language as tl
from torch import Tensor

from dslite.model.kernels import gpu_limits

SORT_STEP = 1024  # choices that a program of the sort reads at once
COMBINE_STEP = 1024  # values of a token that a program adds at once
# Rows of a tile by how many an expert gets on average: a product on tensor cores takes 16 at least, and larger tiles
# leave an expert's last one emptier. Many are for GPUs with shared memory for them.
FEW_ROWS, MIDDLE_ROWS, MANY_ROWS = 16, 64, 128
MANY_FROM = 150  # rows of an expert
# By rows of a tile and bytes of a value: columns, values of a row that it reads at once, loads in flight, warps. The
# fastest of 20 on an H100 at Lite's size. For 2,048 tokens gate and up took 394 us, down 278, sorting and adding 40;
# for 512 tokens 275, 151 and 9: as much as reading the experts.
Tile = tuple[int, int, int, int]
TILES_IN: dict[tuple[int, int], Tile] = {
    (FEW_ROWS, 2): (64, 64, 4, 4),
    (FEW_ROWS, 4): (32, 32, 2, 4),
    (MIDDLE_ROWS, 2): (64, 64, 3, 4),
    (MIDDLE_ROWS, 4): (32, 32, 2, 4),
    (MANY_ROWS, 2): (128, 64, 4, 8),
}
TILES_OUT: dict[tuple[int, int], Tile] = {
    (FEW_ROWS, 2): (64, 64, 3, 8),
    (FEW_ROWS, 4): (64, 32, 2, 4),
    (MIDDLE_ROWS, 2): (128, 64, 3, 4),
    (MIDDLE_ROWS, 4): (64, 32, 2, 4),
    (MANY_ROWS, 2): (128, 64, 3, 4),
}
MANY_SHARED_MEMORY = 200_000  # bytes that tiles of many rows need


@triton.jit(do_not_specialize=["count"])
def sort_choices(
    ids,  # (T·K,) int64
    order,  # (T·K,) int32: choices expert by expert, those of an expert in ascending order
    starts,  # (E+1,) int32: where each expert's begin
    count,
    experts: tl.constexpr,
    step: tl.constexpr,
):
    """Counting sort. A program has one expert: it counts the choices of smaller ones, then places its own."""
    expert = tl.program_id(0)
    place = 0
    for start in range(0, count, step):
        at = start + tl.arange(0, step)
        chosen = tl.load(ids + at, mask=at < count, other=experts)
        place += tl.sum((chosen < expert).to(tl.int32), 0)
    tl.store(starts + expert, place)
    if expert == experts - 1:
        tl.store(starts + experts, count)
    for start in range(0, count, step):
        at = start + tl.arange(0, step)
        own = (tl.load(ids + at, mask=at < count, other=experts) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(own, 0) - 1, at, mask=own > 0)
        place += tl.sum(own, 0)


@triton.jit
def tile_of(starts, number, experts: tl.constexpr, expert_tile: tl.constexpr, rows: tl.constexpr):
    """The expert of a tile, its first row and the end of the expert's rows; an expert that does not exist if none."""
    e = tl.arange(0, expert_tile)
    first = tl.load(starts + e, mask=e < experts, other=0)
    last = tl.load(starts + e + 1, mask=e < experts, other=0)
    tiles = (last - first + rows - 1) // rows
    expert = tl.sum((tl.cumsum(tiles, 0) <= number).to(tl.int32), 0)
    before = tl.sum(tl.where(e < expert, tiles, 0), 0)
    own = e == expert
    row = tl.sum(tl.where(own, first, 0), 0) + (number - before) * rows
    return expert, row, tl.sum(tl.where(own, last, 0), 0)


@triton.jit
def gate_up_rows(
    x,  # (T, D)
    order,  # (T·K,) int32
    starts,  # (E+1,) int32
    table,  # (E, 4) int64: addresses of gate, up and down, and values between neighbouring rows of down
    products,  # (T·K, W): rows in the order of `order`
    hidden: tl.constexpr,
    width: tl.constexpr,
    per_token: tl.constexpr,
    experts: tl.constexpr,
    expert_tile: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """silu(gate · x) · (up · x) of a tile: some choices of one expert, some of its columns."""
    expert, row, end = tile_of(starts, tl.program_id(0), experts, expert_tile, rows)
    if expert >= experts:
        return
    at = row + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    token = tl.load(order + at, mask=at < end, other=0) // per_token
    kind = tl.pointer_type(x.dtype.element_ty)
    gate = tl.load(table + expert * 4).to(kind)
    up = tl.load(table + expert * 4 + 1).to(kind)
    if aligned:
        gate = tl.multiple_of(gate, 16)
        up = tl.multiple_of(up, 16)
    own = x + token.to(tl.int64)[:, None] * hidden
    weights = column[:, None] * hidden
    gates = tl.zeros((rows, columns), tl.float32)
    ups = tl.zeros((rows, columns), tl.float32)
    for start in range(0, hidden, step):
        k = start + tl.arange(0, step)
        there = (column < width)[:, None] & (k < hidden)[None, :]
        value = tl.load(own + k[None, :], mask=(k < hidden)[None, :], other=0.0)
        gates = tl.dot(value, tl.load(gate + weights + k[None, :], mask=there, other=0.0).T, gates, "ieee")
        ups = tl.dot(value, tl.load(up + weights + k[None, :], mask=there, other=0.0).T, ups, "ieee")
    out = gates / (1 + tl.exp(-gates)) * ups
    place = products + at.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(place, out.to(products.dtype.element_ty), mask=(at < end)[:, None] & (column < width)[None, :])


@triton.jit
def down_rows(
    products,  # (T·K, W): rows in the order of `order`
    order,  # (T·K,) int32
    starts,  # (E+1,) int32
    table,  # (E, 4) int64
    parts,  # (T·K, D): rows as the tokens chose
    hidden: tl.constexpr,
    width: tl.constexpr,
    experts: tl.constexpr,
    expert_tile: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    step: tl.constexpr,
    aligned: tl.constexpr,
):
    """down · product of a tile: some choices of one expert, some of the D columns."""
    expert, row, end = tile_of(starts, tl.program_id(0), experts, expert_tile, rows)
    if expert >= experts:
        return
    at = row + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    there = at < end
    down = tl.load(table + expert * 4 + 2).to(tl.pointer_type(products.dtype.element_ty))
    stride = tl.load(table + expert * 4 + 3)
    if aligned:
        down = tl.multiple_of(down, 16)
        stride = tl.multiple_of(stride, 8)
    own = products + tl.where(there, at, row).to(tl.int64)[:, None] * width
    weights = column[:, None] * stride
    sums = tl.zeros((rows, columns), tl.float32)
    for start in range(0, width, step):
        k = start + tl.arange(0, step)
        value = tl.load(own + k[None, :], mask=(k < width)[None, :], other=0.0)
        mask = (column < hidden)[:, None] & (k < width)[None, :]
        sums = tl.dot(value, tl.load(down + weights + k[None, :], mask=mask, other=0.0).T, sums, "ieee")
    choice = tl.load(order + at, mask=there, other=0).to(tl.int64)
    place = parts + choice[:, None] * hidden + column[None, :]
    tl.store(place, sums.to(parts.dtype.element_ty), mask=there[:, None] & (column < hidden)[None, :])


@triton.jit
def combine_parts(
    parts,  # (T·K, D)
    weights,  # (T·K,) float32
    out,  # (T, D) float32
    hidden: tl.constexpr,
    per_token: tl.constexpr,
    step: tl.constexpr,
):
    """Some values of a token: its experts' parts times their weights, added in the order of its choices."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * step + tl.arange(0, step)
    total = tl.zeros((step,), tl.float32)
    for rank in range(per_token):
        choice = token * per_token + rank
        part = tl.load(parts + choice * hidden + at, mask=at < hidden, other=0.0).to(tl.float32)
        total += part * tl.load(weights + choice)
    tl.store(out + token * hidden + at, total, mask=at < hidden)


def experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: Tensor, width: int) -> Tensor:
    """hidden (T, D), ids (T, K), float32 weights (T, K): the weighted sum (T, D), float32, of experts of width W.

    `table` (E, 4) has the addresses of triton_experts.address_table. Each token's experts are added in the order of its
    choices, so that the sum is the same every time.
    """
    count, device = expert_ids.numel(), hidden.device
    order = torch.empty(count, dtype=torch.int32, device=device)
    starts = torch.empty(len(table) + 1, dtype=torch.int32, device=device)
    launch_sort_choices(expert_ids, order, starts)
    products = hidden.new_empty(count, width)
    launch_gate_up_rows(hidden, order, starts, table, products)
    parts = hidden.new_empty(count, hidden.shape[1])
    launch_down_rows(products, order, starts, table, parts)
    del products
    out = torch.empty(hidden.shape, dtype=torch.float32, device=device)
    launch_combine_parts(parts, weights, out)
    return out


@torch.library.custom_op("dslite::sort_choices", mutates_args=("order", "starts"))
def launch_sort_choices(ids: Tensor, order: Tensor, starts: Tensor) -> None:
    """Choices ids (T, K): `order` (T·K,) lists their numbers expert by expert, from `starts` (E+1,) on. One launch."""
    with torch.cuda.device_of(ids):  # Triton launches on the current device
        sort_choices[(len(starts) - 1,)](
            ids, order, starts, ids.numel(), experts=len(starts) - 1, step=SORT_STEP, num_warps=4
        )


@torch.library.custom_op("dslite::gate_up_rows", mutates_args=("products",))
def launch_gate_up_rows(x: Tensor, order: Tensor, starts: Tensor, table: Tensor, products: Tensor) -> None:
    """The inner products (T·K, W) of hidden states x (T, D), in the order of `order`. One launch."""
    (count, width), hidden, routed = products.shape, x.shape[1], len(table)
    rows = tile_rows(count, routed, x.element_size(), gpu_limits.shared_memory(x.device))
    columns, step, stages, warps = TILES_IN[rows, x.element_size()]
    with torch.cuda.device_of(x):
        gate_up_rows[(most_tiles(count, routed, rows), triton.cdiv(width, columns))](
            x,
            order,
            starts,
            table,
            products,
            hidden=hidden,
            width=width,
            per_token=count // x.shape[0],
            experts=routed,
            expert_tile=triton.next_power_of_2(routed),
            rows=rows,
            columns=columns,
            step=step,
            aligned=hidden % 8 == 0,  # then sixteen bytes are read at once
            num_warps=warps,
            num_stages=stages,
        )


@torch.library.custom_op("dslite::down_rows", mutates_args=("parts",))
def launch_down_rows(products: Tensor, order: Tensor, starts: Tensor, table: Tensor, parts: Tensor) -> None:
    """Each choice's part (T·K, D) of the output from its inner products (T·K, W). One launch."""
    (count, width), hidden, routed = products.shape, parts.shape[1], len(table)
    rows = tile_rows(count, routed, parts.element_size(), gpu_limits.shared_memory(parts.device))
    columns, step, stages, warps = TILES_OUT[rows, parts.element_size()]
    with torch.cuda.device_of(parts):
        down_rows[(most_tiles(count, routed, rows), triton.cdiv(hidden, columns))](
            products,
            order,
            starts,
            table,
            parts,
            hidden=hidden,
            width=width,
            experts=routed,
            expert_tile=triton.next_power_of_2(routed),
            rows=rows,
            columns=columns,
            step=step,
            aligned=width % 8 == 0,
            num_warps=warps,
            num_stages=stages,
        )


@torch.library.custom_op("dslite::combine_parts", mutates_args=("out",))
def launch_combine_parts(parts: Tensor, weights: Tensor, out: Tensor) -> None:
    """The sums (T, D) of the parts (T·K, D) by weights (T, K). One launch."""
    tokens, hidden = out.shape
    with torch.cuda.device_of(parts):
        combine_parts[(tokens, triton.cdiv(hidden, COMBINE_STEP))](
            parts, weights, out, hidden=hidden, per_token=weights.shape[1], step=COMBINE_STEP, num_warps=4
        )


def tile_rows(choices: int, routed: int, item: int, shared_memory: int) -> int:
    """Rows of a tile for so many choices among so many experts, in values of `item` bytes."""
    if choices <= FEW_ROWS * routed:
        return FEW_ROWS
    fit = item == 2 and shared_memory >= MANY_SHARED_MEMORY
    return MANY_ROWS if fit and choices >= MANY_FROM * routed else MIDDLE_ROWS


def most_tiles(choices: int, routed: int, rows: int) -> int:
    """Tiles that the choices fill at most: every expert's last one may be nearly empty."""
    return choices // rows + min(choices, routed)
