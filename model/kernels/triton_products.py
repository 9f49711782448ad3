"""Matrix-vector products of one token on a GPU. A launch does the norm before or the addition after it too."""

# D width of a row  A, B rows of a matrix

import torch
import triton
import triton.language as tl
from torch import Tensor

# (most rows of a matrix, weight rows of a program, values of a row that it reads at once). A matrix of few rows needs
# many programs to occupy the GPU; one of many rows is read fastest in long reads.
TILES = ((1023, 1, 2048), (16383, 4, 1024), (2**31, 16, 512))
WARPS = 4


@triton.jit
def norm_product(
    x,  # (D,)
    norm,  # (D,)
    first,  # (A, D)
    second,  # (B, D); anything where B is 0
    out,  # (A+B,)
    eps,
    width: tl.constexpr,
    first_rows: tl.constexpr,
    second_rows: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some rows of x, normed, times one of two matrices.

    The norm's factor is one number, applied to the sums: x is read once, and no program waits for the factor. In BF16
    the normed x is therefore not rounded.
    """
    block = tl.program_id(0)
    row = block * rows_tile + tl.arange(0, rows_tile)
    weight, there, place = first, row < first_rows, row
    first_blocks: tl.constexpr = (first_rows + rows_tile - 1) // rows_tile
    if block >= first_blocks:
        row -= first_blocks * rows_tile
        weight, there, place = second, row < second_rows, first_rows + row
    sums = tl.zeros((rows_tile, step), tl.float32)
    squares = tl.zeros((step,), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        value = tl.load(x + at, mask=at < width, other=0.0).to(tl.float32)
        scaled = value * tl.load(norm + at, mask=at < width, other=0.0).to(tl.float32)
        some = weight + row[:, None].to(tl.int64) * width + at[None, :]
        part = tl.load(some, mask=there[:, None] & (at < width)[None, :], other=0.0)
        sums += part.to(tl.float32) * scaled[None, :]
        squares += value * value
    total = tl.sum(sums, 1) * tl.rsqrt(tl.sum(squares, 0) / width + eps)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=there)


@triton.jit
def add_product(
    x,  # (D,)
    weight,  # (A, D)
    residual,  # (A,)
    out,  # (A,)
    width: tl.constexpr,
    rows: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some rows of residual + weight · x, the product rounded as torch rounds it."""
    row = tl.program_id(0) * rows_tile + tl.arange(0, rows_tile)
    there = row < rows
    sums = tl.zeros((rows_tile, step), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        value = tl.load(x + at, mask=at < width, other=0.0).to(tl.float32)
        some = weight + row[:, None].to(tl.int64) * width + at[None, :]
        part = tl.load(some, mask=there[:, None] & (at < width)[None, :], other=0.0)
        sums += part.to(tl.float32) * value[None, :]
    kind = out.dtype.element_ty
    product = tl.sum(sums, 1).to(kind).to(tl.float32)
    total = tl.load(residual + row, mask=there, other=0.0).to(tl.float32) + product
    tl.store(out + row, total.to(kind), mask=there)


def tile(rows: int, width: int) -> tuple[int, int]:
    """Rows of a program, and values of a row that it reads at once."""
    _, rows_tile, step = next(tile for tile in TILES if rows <= tile[0])
    return rows_tile, min(step, triton.next_power_of_2(width))


@torch.library.custom_op("dslite::norm_product", mutates_args=("out",))
def launch_norm_product(x: Tensor, norm: Tensor, first: Tensor, second: Tensor | None, out: Tensor, eps: float) -> None:
    """rms_norm(x) (D,) times first (A, D) and second (B, D): out (A+B,). One launch."""
    more = 0 if second is None else second.shape[0]
    rows_tile, step = tile(first.shape[0], x.shape[0])
    blocks = triton.cdiv(first.shape[0], rows_tile) + triton.cdiv(more, rows_tile)
    with torch.cuda.device_of(x):  # outside of a recording, too: Triton launches on the current device
        norm_product[(blocks,)](
            x,
            norm,
            first,
            first if second is None else second,
            out,
            eps,
            width=x.shape[0],
            first_rows=first.shape[0],
            second_rows=more,
            rows_tile=rows_tile,
            step=step,
            num_warps=WARPS,
        )


@torch.library.custom_op("dslite::add_product", mutates_args=("out",))
def launch_add_product(x: Tensor, weight: Tensor, residual: Tensor, out: Tensor) -> None:
    """residual (A,) + weight (A, D) · x (D,): out (A,). One launch."""
    rows_tile, step = tile(weight.shape[0], x.shape[0])
    with torch.cuda.device_of(x):
        add_product[(triton.cdiv(weight.shape[0], rows_tile),)](
            x,
            weight,
            residual,
            out,
            width=x.shape[0],
            rows=weight.shape[0],
            rows_tile=rows_tile,
            step=step,
            num_warps=WARPS,
        )
