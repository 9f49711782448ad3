"""Products of a matrix with the rows of a few tokens on a GPU. A launch does the norm before or the addition after too.

Of one token sums are made by elements; of several on tensor cores, sixteen tokens wide, so that a weight is read once
for all of them.
"""

# T tokens  D width of a row  A, B rows of a matrix

import torch
import triton
import triton.language as tl
from torch import Tensor

# (most rows of a matrix, weight rows of a program, values of a row that it reads at once). A matrix of few rows needs
# many programs to occupy the GPU. The fastest of 30 shapes each, measured on an H100 at Lite's sizes.
TILES = ((1023, 1, 2048), (16383, 2, 1024), (2**31, 8, 1024))
# The same for several tokens: 16 rows a tensor core multiplies at least. Values at once are bytes.
TOKEN_TILES = ((2048, 32, 256), (2**31, 64, 256))
WARPS, TOKEN_WARPS = 4, 8
STAGES = 4  # tiles of weights under way for several tokens
TOKEN_TILE = 16  # tokens of a product on tensor cores; the most that a recorded step has


@triton.jit
def load_weights(weight, row, at, rows: tl.constexpr, width: tl.constexpr):
    """Some values of some rows of a matrix (rows, width): (row, at), zero outside of it."""
    place = weight + row[:, None].to(tl.int64) * width + at[None, :]
    return tl.load(place, mask=(row < rows)[:, None] & (at < width)[None, :], other=0.0)


@triton.jit
def norm_product(
    x,  # (T, D)
    norm,  # (D,)
    first,  # (A, D)
    second,  # (B, D); anything where B is 0
    out,  # (T, A+B)
    eps,
    x_stride: tl.constexpr,
    width: tl.constexpr,
    first_rows: tl.constexpr,
    second_rows: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some rows of one token's x, normed, times one of two matrices.

    The norm's factor is one number, applied to the sums: x is read once, and no program waits for the factor. In BF16
    the normed x is therefore not rounded.
    """
    block, token = tl.program_id(0), tl.program_id(1)
    row = block * rows_tile + tl.arange(0, rows_tile)
    weight, rows, place = first, first_rows, row
    first_blocks: tl.constexpr = (first_rows + rows_tile - 1) // rows_tile
    if block >= first_blocks:
        row -= first_blocks * rows_tile
        weight, rows, place = second, second_rows, first_rows + row
    sums = tl.zeros((rows_tile, step), tl.float32)
    squares = tl.zeros((step,), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        value = tl.load(x + token * x_stride + at, mask=at < width, other=0.0).to(tl.float32)
        scaled = value * tl.load(norm + at, mask=at < width, other=0.0).to(tl.float32)
        sums += load_weights(weight, row, at, rows, width).to(tl.float32) * scaled[None, :]
        squares += value * value
    total = tl.sum(sums, 1) * tl.rsqrt(tl.sum(squares, 0) / width + eps)
    own = out + token * (first_rows + second_rows)
    tl.store(own + place, total.to(out.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=["tokens"])
def norm_product_tokens(
    x,  # (T, D)
    norm,  # (D,)
    first,  # (A, D)
    second,  # (B, D); anything where B is 0
    out,  # (T, A+B)
    eps,
    tokens,
    token_tile: tl.constexpr,
    x_stride: tl.constexpr,
    width: tl.constexpr,
    first_rows: tl.constexpr,
    second_rows: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some rows of one of two matrices times all tokens' x, normed. In BF16 x · norm is rounded, the factor is not."""
    block, t = tl.program_id(0), tl.arange(0, token_tile)
    row = block * rows_tile + tl.arange(0, rows_tile)
    weight, rows, place = first, first_rows, row
    first_blocks: tl.constexpr = (first_rows + rows_tile - 1) // rows_tile
    if block >= first_blocks:
        row -= first_blocks * rows_tile
        weight, rows, place = second, second_rows, first_rows + row
    sums = tl.zeros((rows_tile, token_tile), tl.float32)
    squares = tl.zeros((token_tile, step), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        there = (t < tokens)[:, None] & (at < width)[None, :]
        value = tl.load(x + t[:, None] * x_stride + at[None, :], mask=there, other=0.0).to(tl.float32)
        scaled = value * tl.load(norm + at, mask=at < width, other=0.0).to(tl.float32)[None, :]
        part = load_weights(weight, row, at, rows, width)
        sums = tl.dot(part, tl.trans(scaled.to(part.dtype)), sums, input_precision="ieee")
        squares += value * value
    total = sums * tl.rsqrt(tl.sum(squares, 1) / width + eps)[None, :]
    own = out + t[None, :] * (first_rows + second_rows) + place[:, None]
    tl.store(own, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (t < tokens)[None, :])


@triton.jit
def add_product(
    x,  # (T, D)
    weight,  # (A, D)
    residual,  # (T, A)
    out,  # (T, A)
    width: tl.constexpr,
    rows: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some rows of residual + weight · x of one token, the product rounded as torch rounds it."""
    row, token = tl.program_id(0) * rows_tile + tl.arange(0, rows_tile), tl.program_id(1)
    sums = tl.zeros((rows_tile, step), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        value = tl.load(x + token * width + at, mask=at < width, other=0.0).to(tl.float32)
        sums += load_weights(weight, row, at, rows, width).to(tl.float32) * value[None, :]
    kind = out.dtype.element_ty
    product = tl.sum(sums, 1).to(kind).to(tl.float32)
    total = tl.load(residual + token * rows + row, mask=row < rows, other=0.0).to(tl.float32) + product
    tl.store(out + token * rows + row, total.to(kind), mask=row < rows)


@triton.jit(do_not_specialize=["tokens"])
def add_product_tokens(
    x,  # (T, D)
    weight,  # (A, D)
    residual,  # (T, A)
    out,  # (T, A)
    tokens,
    token_tile: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    rows_tile: tl.constexpr,
    step: tl.constexpr,
):
    """Some rows of residual + weight · x of all tokens, the product rounded as torch rounds it."""
    row, t = tl.program_id(0) * rows_tile + tl.arange(0, rows_tile), tl.arange(0, token_tile)
    sums = tl.zeros((rows_tile, token_tile), tl.float32)
    for start in range(0, width, step):
        at = start + tl.arange(0, step)
        there = (t < tokens)[:, None] & (at < width)[None, :]
        value = tl.load(x + t[:, None] * width + at[None, :], mask=there, other=0.0)
        part = load_weights(weight, row, at, rows, width)
        sums = tl.dot(part, tl.trans(value.to(part.dtype)), sums, input_precision="ieee")
    kind = out.dtype.element_ty
    place = t[None, :] * rows + row[:, None]
    used = (row < rows)[:, None] & (t < tokens)[None, :]
    total = tl.load(residual + place, mask=used, other=0.0).to(tl.float32) + sums.to(kind).to(tl.float32)
    tl.store(out + place, total.to(kind), mask=used)


def tile(rows: int, width: int) -> tuple[int, int]:
    """Rows of a program, and values of a row that it reads at once, for one token."""
    _, rows_tile, step = next(tile for tile in TILES if rows <= tile[0])
    return rows_tile, min(step, triton.next_power_of_2(width))


def token_tile(rows: int, width: int, item: int) -> tuple[int, int]:
    """The same for several tokens; `item` is the size of a weight in bytes."""
    _, rows_tile, step = next(tile for tile in TOKEN_TILES if rows <= tile[0])
    return rows_tile, min(step // item, max(16, triton.next_power_of_2(width)))


@torch.library.custom_op("dslite::norm_product", mutates_args=("out",))
def launch_norm_product(
    x: Tensor, norm: Tensor, first: Tensor, second: Tensor | None, out: Tensor, eps: float, exact: bool = False
) -> None:
    """rms_norm(x) (T, D) times first (A, D) and second (B, D): out (T, A+B). One launch; T is at most TOKEN_TILE.

    The rows of x may lie apart, as parts of one product do. `exact`: the normed x is not rounded, for the router.
    """
    more = 0 if second is None else second.shape[0]
    tokens, width = x.shape
    together = tokens > 1 and not exact
    rows, item = first.shape[0], first.element_size()
    rows_tile, step = token_tile(rows, width, item) if together else tile(rows, width)
    blocks = triton.cdiv(first.shape[0], rows_tile) + triton.cdiv(more, rows_tile)
    arguments = (x, norm, first, first if second is None else second, out, eps)
    sizes = {
        "x_stride": x.stride(0),
        "width": width,
        "first_rows": first.shape[0],
        "second_rows": more,
        "rows_tile": rows_tile,
        "step": step,
    }
    with torch.cuda.device_of(x):  # outside of a recording, too: Triton launches on the current device
        if together:
            norm_product_tokens[(blocks,)](
                *arguments, tokens=tokens, token_tile=TOKEN_TILE, num_stages=STAGES, num_warps=TOKEN_WARPS, **sizes
            )
        else:
            norm_product[(blocks, tokens)](*arguments, num_warps=WARPS, **sizes)


@torch.library.custom_op("dslite::add_product", mutates_args=("out",))
def launch_add_product(x: Tensor, weight: Tensor, residual: Tensor, out: Tensor) -> None:
    """residual (T, A) + weight (A, D) · x (T, D): out (T, A). One launch; T is at most TOKEN_TILE."""
    tokens, width = x.shape
    rows, item = weight.shape[0], weight.element_size()
    rows_tile, step = tile(rows, width) if tokens == 1 else token_tile(rows, width, item)
    blocks = triton.cdiv(weight.shape[0], rows_tile)
    arguments = (x, weight, residual, out)
    sizes = {"width": width, "rows": rows, "rows_tile": rows_tile, "step": step}
    with torch.cuda.device_of(x):
        if tokens > 1:
            add_product_tokens[(blocks,)](
                *arguments, tokens=tokens, token_tile=TOKEN_TILE, num_stages=STAGES, num_warps=TOKEN_WARPS, **sizes
            )
        else:
            add_product[(blocks, 1)](*arguments, num_warps=WARPS, **sizes)
