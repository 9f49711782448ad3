"""Products on the CPU by our C++ library (cpu/): of few tokens, where reading the weights takes the time, and of many.

The library is built with the package where there is a C++ compiler; without it torch computes the same, slower. All
kernels take BF16 on the CPU, sum in float32 and round once at the end. The library detects the instruction sets of the
processor.
"""

# T tokens  D hidden  E experts  K experts per token  H heads  S cached tokens

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dslite.model.kernels.library import LEVELS, find_library, levels
from dslite.model.kernels.structs import AttentionJob, MatrixAddress, MlpAddress
from dslite.model.quantized import QuantizedMatrix, Weight
from dslite.model.quantized_layout import VALUE_BITS

MOST_TOKENS = 16  # of the kernels that are made for few rows
STEP = 32  # the kernels read this many values at once: every width must be a multiple
MOST_EXPERTS, MOST_HEADS, MOST_LATENT = 512, 256, 1024  # ops.h

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "linear": [_POINTER] * 3 + [_SIZE] * 4 + [_INT],
    "experts": [_POINTER, _SIZE] + [_POINTER] * 4 + [_SIZE] * 3 + [_INT],
    "head": [_POINTER, _POINTER, _FLOAT] + [_POINTER] * 2 + [_SIZE] * 3 + [_INT],
    "by_head": [_POINTER] * 3 + [_SIZE] * 7 + [_INT],
    "quantized_linear": [_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _INT, _INT],
    "quantize": [_POINTER, _SIZE, _POINTER, _INT],
    "layers": [_POINTER, _SIZE, _POINTER, _INT],
    "attention": [_POINTER, _INT],
    "norms": [_POINTER, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _FLOAT, _INT],
}


@dataclass
class KernelThresholds:
    """Which GEMM is used for many rows. Torch's is only faster with matrix units (AMX), or than our portable C++."""

    torch_from: int | None = None  # rows from which torch's is faster, as measured; None: never

    def ours(self, rows: float) -> bool:
        """Whether our own is used for so many rows."""
        return rows <= MOST_TOKENS or self.torch_from is None or rows < self.torch_from


thresholds = KernelThresholds()


class NativeProducts:
    """The library at one level of instructions. Callers must check shapes and types first (`suits_…`)."""

    def __init__(self, library: ctypes.CDLL, level: str) -> None:
        self.level = level
        self._level = LEVELS.index(level)
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, f"dslite_{name}")
            function.argtypes = [_INT, *arguments]
            function.restype = None
        self._linear, self._experts = library.dslite_linear, library.dslite_experts
        self._head, self._layers = library.dslite_head, library.dslite_layers
        self._attention, self._norms = library.dslite_attention, library.dslite_norms
        self._quantized_linear, self._by_head = library.dslite_quantized_linear, library.dslite_by_head
        self._quantize = library.dslite_quantize

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x (T, k), rows of any stride, and weight (n, k): (T, n)."""
        tokens, width = x.shape
        rows = weight.shape[0]
        out = torch.empty(tokens, rows, dtype=torch.bfloat16)
        self._linear(
            self._level,
            weight.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            rows,
            width,
            tokens,
            x.stride(0),
            torch.get_num_threads(),
        )
        return out

    def by_head(self, x: Tensor, weights: Tensor) -> Tensor:
        """x (T, H, k) and a matrix for each head, (H, n, k): (T, H, n). Rows of k values are contiguous; T is small."""
        tokens, heads, width = x.shape
        rows = weights.shape[1]
        out = torch.empty(tokens, heads, rows, dtype=torch.bfloat16)
        self._by_head(
            self._level,
            weights.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            heads,
            rows,
            width,
            tokens,
            weights.stride(0),
            x.stride(0),
            x.stride(1),
            torch.get_num_threads(),
        )
        return out

    def quantized_linear(self, x: Tensor, weight: QuantizedMatrix, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The same with a quantized weight, in BF16 or float32; x is quantized to int8 by groups of 32 values."""
        tokens = x.shape[0]
        out = torch.empty(tokens, weight.rows, dtype=dtype)
        matrix = matrix_address(weight)
        self._quantized_linear(
            self._level,
            ctypes.addressof(matrix),
            x.data_ptr(),
            x.stride(0),
            tokens,
            out.data_ptr(),
            dtype is torch.float32,
            torch.get_num_threads(),
        )
        return out

    def quantize(self, weight: Tensor, out: QuantizedMatrix) -> None:
        """Quantize a weight (rows, columns) in BF16 into the memory of `out`, as quantized.quantize does."""
        matrix = matrix_address(out)
        self._quantize(
            self._level, weight.data_ptr(), weight.stride(0), ctypes.addressof(matrix), torch.get_num_threads()
        )

    def experts(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: "ExpertTable") -> Tensor:
        """hidden (T, D), ids (T, K) int64, weights (T, K) float32: the weighted sum, (T, D) in float32.

        Of quantized experts the inputs of both products are quantized to int8.
        """
        out = torch.empty(hidden.shape, dtype=torch.float32)
        assert table.mlps is not None
        self._experts(
            self._level,
            ctypes.addressof(table.mlps),
            table.count,
            expert_ids.data_ptr(),
            weights.data_ptr(),
            hidden.data_ptr(),
            out.data_ptr(),
            *expert_ids.shape,
            hidden.shape[1],
            torch.get_num_threads(),
        )
        return out

    def norms(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x (T, D), rows of any stride, divided by its root mean square and scaled: (T, D)."""
        tokens, width = x.shape
        out = torch.empty(tokens, width, dtype=torch.bfloat16)
        self._norms(
            self._level,
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            out.data_ptr(),
            width,
            tokens,
            eps,
            torch.get_num_threads(),
        )
        return out

    def head(self, hidden: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
        """hidden (T, D), normed, times weight (vocabulary, D): (T, vocabulary), rounded to BF16, as float32."""
        tokens, width = hidden.shape
        rows = weight.shape[0]
        out = torch.empty(tokens, rows, dtype=torch.float32)
        self._head(
            self._level,
            weight.data_ptr(),
            norm.data_ptr(),
            eps,
            hidden.data_ptr(),
            out.data_ptr(),
            rows,
            width,
            tokens,
            torch.get_num_threads(),
        )
        return out

    def prefill(self, queries: Tensor, rows: Tensor, kv_b: Tensor, scale: float) -> Tensor:
        """Causal attention of the last T of S tokens.

        Rotated queries (T, H, N+R), latent entries (S, C+R), and kv_b (H·(N+V), C), which expands them to keys and
        values: values (T, H, V).
        """
        heads, latent = queries.shape[1], kv_b.shape[1]
        value = kv_b.shape[0] // heads - queries.shape[2] + rows.shape[1] - latent
        return self._attend(queries, rows, latent, value, scale, sharing=1, kv_b=kv_b)

    def absorbed(self, queries: Tensor, rows: Tensor, latent: int, scale: float) -> Tensor:
        """The same with absorbed queries (T, H, C+R): latents (T, H, C)."""
        out = self._attend(queries.flatten(0, 1)[:, None], rows, latent, latent, scale, sharing=queries.shape[1])
        return out.view(*queries.shape[:2], latent)

    def _attend(
        self,
        queries: Tensor,
        rows: Tensor,
        latent: int,
        value: int,
        scale: float,
        *,
        sharing: int,
        kv_b: Tensor | None = None,
    ) -> Tensor:
        """Queries (Q, H, width) of which `sharing` belong to a token, rows (S, C+R): (Q, H, value)."""
        count, heads, width = queries.shape
        rope = rows.shape[1] - latent
        out = torch.empty(count, heads, value, dtype=torch.bfloat16)
        job = AttentionJob(
            queries=queries.data_ptr(),
            kv_b=None if kv_b is None else kv_b.data_ptr(),
            keys=rows.data_ptr(),
            values=rows.data_ptr(),
            rotary=rows.data_ptr() + latent * rows.element_size(),
            out=out.data_ptr(),
            n_queries=count,
            sharing=sharing,
            length=rows.shape[0],
            heads=heads,
            nope=width - rope,
            rope=rope,
            value=value,
            latent=latent,
            stride=rows.stride(0),
            rotary_stride=rows.stride(0),
            scale=scale,
        )
        self._attention(self._level, ctypes.addressof(job), torch.get_num_threads())
        return out

    def layers(self, layers: "ctypes.Array[Any]", step: ctypes.Structure) -> None:
        """layer.py: the structs of ops.h."""
        self._layers(
            self._level, ctypes.addressof(layers), len(layers), ctypes.addressof(step), torch.get_num_threads()
        )


class ExpertTable:
    """The addresses of the matrices of some experts, from which the kernel picks those of a token."""

    def __init__(self, matrices: Sequence[tuple[Weight, Weight, Weight]]) -> None:
        """gate, up (width, D) and down (D, width) of each expert."""
        self._matrices = list(matrices)  # an address does not keep its tensor alive
        self.count = len(self._matrices)
        few = 0 < self.count <= MOST_EXPERTS
        published = few and all(suits_weight(matrix) for some in matrices for matrix in some)
        self.quantized = few and all(suits_quantized(matrix) for some in matrices for matrix in some)
        # Tensors on another device or on "meta" have no address to take. None: no kernel computes these experts.
        suits = published or self.quantized
        self.mlps = (MlpAddress * self.count)(*map(_mlp_address, matrices)) if suits else None


def matrix_address(weight: Weight) -> MatrixAddress:
    """Where a weight lies in memory, and its size."""
    if isinstance(weight, Tensor):
        return MatrixAddress(weight.data_ptr(), weight.stride(0) * weight.element_size(), *weight.shape, 16)
    return MatrixAddress(weight.data.data_ptr(), weight.panel_stride, *weight.shape, VALUE_BITS[weight.format])


def _mlp_address(matrices: tuple[Weight, Weight, Weight]) -> MlpAddress:
    return MlpAddress(*map(matrix_address, matrices))


def suits_weight(weight: Weight) -> bool:
    """Whether a matrix can be read in place."""
    return (
        isinstance(weight, Tensor)
        and weight.dtype is torch.bfloat16
        and weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.shape[-1] % STEP == 0
        and not weight.requires_grad
    )


def suits_quantized(weight: Weight) -> bool:
    """Whether a quantized matrix can be read in place."""
    return isinstance(weight, QuantizedMatrix) and weight.device.type == "cpu"


def suits_heads(x: Tensor) -> bool:
    """Whether the kernel of products by head reads x (T, H, k) in place."""
    few = 0 < x.shape[0] <= MOST_TOKENS and x.shape[2] % STEP == 0
    return few and x.dtype is torch.bfloat16 and x.device.type == "cpu" and x.stride(2) == 1 and not x.requires_grad


def suits_by_head(x: Tensor, weights: Tensor) -> bool:
    """The same, and the matrices of heads (H, n, k)."""
    bf16 = weights.dtype is torch.bfloat16 and weights.device.type == "cpu" and not weights.requires_grad
    return suits_heads(x) and bf16 and weights.stride(2) == 1 and weights.stride(1) == weights.shape[2]


def suits_rows(x: Tensor) -> bool:
    """Whether the kernels for few rows take a batch."""
    return x.shape[0] <= MOST_TOKENS and x.is_contiguous() and suits_many_rows(x)


def suits_many_rows(x: Tensor) -> bool:
    """Whether a batch of any number of rows, of any stride, can be read in place."""
    return (
        x.dtype is torch.bfloat16
        and x.device.type == "cpu"
        and x.shape[0] > 0
        and x.stride(-1) == 1
        and not x.requires_grad
    )


def suits_prefill(queries: Tensor, rows: Tensor, kv_b: Tensor) -> bool:
    """Whether expanded attention can read all its inputs in place."""
    heads, latent = queries.shape[1], kv_b.shape[1]
    rope = rows.shape[1] - latent
    nope = queries.shape[2] - rope
    value = kv_b.shape[0] // heads - nope
    return (
        all(tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu" for tensor in (queries, rows))
        and suits_weight(kv_b)
        and queries.is_contiguous()
        and rows.stride(1) == 1
        and nope % 2 == rope % 2 == 0
        and value % STEP == 0
        and value <= MOST_LATENT
        and not (queries.requires_grad or rows.requires_grad)
    )


def suits_absorbed(queries: Tensor, rows: Tensor, latent: int) -> bool:
    """Whether absorbed attention can read queries (T, H, C+R) and entries (S, C+R) in place."""
    return (
        all(tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu" for tensor in (queries, rows))
        and queries.is_contiguous()
        and rows.stride(1) == 1
        and latent % STEP == 0
        and latent <= MOST_LATENT
        and (rows.shape[1] - latent) % 2 == 0
        and not (queries.requires_grad or rows.requires_grad)
    )


@cache
def products(level: str | None = None) -> NativeProducts | None:
    """The kernels of a level, by default the best; None without the library, or with DSLITE_KERNELS=torch."""
    library = find_library()
    if library is None or (level is None and os.environ.get("DSLITE_KERNELS") == "torch"):
        return None
    return NativeProducts(library, level or levels()[-1])


def describe() -> str:
    """One line for `doctor`: which products the CPU uses."""
    if find_library() is None:
        return "torch's products (the compiled ones are not there: install dslite where a C++ compiler is)"
    if (native := products()) is None:
        return "torch's products (DSLITE_KERNELS=torch)"
    later = "" if thresholds.torch_from is None else f"; torch's from {thresholds.torch_from} rows on"
    return f"compiled products ({native.level}){later}"
