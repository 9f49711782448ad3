"""Products by the fastest kernel for where tensors lie. Most functions return None where no kernel applies; the caller
then computes the reference.

Decoding a token is a chain of matrix-vector products, for which torch has only its kernels for many rows. In prefill an
expert gets some fifty rows: too few to hide the overhead of torch's kernels.
"""

# T tokens  S cached and new tokens  D hidden  E experts  K experts per token
# H heads  N nope  R rope  C latent  V value

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model import quantized
from dslite.model.kernels import gpu, native
from dslite.model.kernels.native import ExpertTable as ExpertTable
from dslite.model.quantized import QuantizedMatrix, Weight

_FIRST = torch.zeros(native.MOST_TOKENS, 1, dtype=torch.int64)
_WHOLE = torch.ones(native.MOST_TOKENS, 1)


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The values of a weight: a tensor as it is, a quantized matrix in a dtype."""
    return weight.dequantize(dtype) if isinstance(weight, QuantizedMatrix) else weight


def head(hidden: Tensor, norm: Tensor, weight: Weight, eps: float) -> Tensor | None:
    """hidden (T, D), normed, times weight (vocabulary, D): float32 (T, vocabulary)."""
    if isinstance(weight, QuantizedMatrix):
        products, normed = native.products(), rms_norm(hidden, norm, eps)
        if products is None or normed is None or not native.suits_quantized(weight):
            return None
        return products.quantized_linear(normed, weight, torch.float32)
    if gpu.usable(hidden.device):
        return gpu.head(hidden, norm, weight, eps)
    products = native.products()
    suits = native.suits_rows(hidden) and native.suits_weight(weight) and native.suits_weight(norm)
    return products.head(hidden, norm, weight, eps) if products is not None and suits else None


def weighted_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: ExpertTable) -> Tensor | None:
    """hidden (T, D), ids (T, K), float32 weights (T, K): the weighted sum of the experts, (T, D) in float32."""
    products = native.products()
    tokens, chosen = expert_ids.shape
    few = tokens <= native.MOST_TOKENS or native.thresholds.ours(tokens * chosen / max(table.count, 1))
    ours = (few or table.quantized) and table.mlps is not None
    if products is not None and ours and hidden.is_contiguous() and native.suits_many_rows(hidden):
        return products.experts(hidden, expert_ids.contiguous(), weights.contiguous(), table)
    return None


def mlp(hidden: Tensor, table: ExpertTable) -> Tensor | None:
    """The table's one expert for every row of hidden (T, D)."""
    rows = hidden.shape[0]
    few = rows <= native.MOST_TOKENS
    first = _FIRST[:rows] if few else torch.zeros(rows, 1, dtype=torch.int64)
    whole = _WHOLE[:rows] if few else torch.ones(rows, 1)
    out = weighted_experts(hidden, first, whole, table)
    return None if out is None else out.to(hidden.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """x (T, D), rows of any stride, normed and scaled by weight (D,): (T, D)."""
    products = native.products()
    if products is None or not (x.dim() == 2 and native.suits_many_rows(x) and native.suits_weight(weight)):
        return None
    return products.norms(x, weight, eps)


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x (T, k), rows of any stride, times weight (n, k): (T, n)."""
    products = native.products()
    if isinstance(weight, QuantizedMatrix):
        if products is not None and native.suits_quantized(weight) and native.suits_many_rows(x):
            return products.quantized_linear(x, weight)
        return F.linear(x, weight.dequantize(x.dtype))
    suits = native.suits_weight(weight) and native.suits_many_rows(x) and native.thresholds.ours(x.shape[0])
    if products is not None and suits:
        return products.linear(x, weight)
    return F.linear(x, weight)


def multiplies_by_head(x: Tensor) -> bool:
    """Whether the compiled kernel takes x (T, H, k), with matrices whose rows of k values are contiguous."""
    return native.products() is not None and native.suits_heads(x)


def by_head(x: Tensor, weights: Tensor) -> Tensor:
    """x (T, H, k) times a matrix for each head (H, n, k): (T, H, n)."""
    products = native.products()
    if products is not None and native.suits_by_head(x, weights):
        return products.by_head(x, weights)
    return torch.einsum("thk,hnk->thn", x, weights)


def expanded_attention(queries: Tensor, rows: Tensor, kv_b: Weight, scale: float) -> Tensor | None:
    """Rotated queries (T, H, N+R) of the last T of S tokens over their latent entries (S, C+R), expanded to keys and
    values by kv_b (H·(N+V), C): causal values (T, H, V).
    """
    products = native.products()
    if products is None:
        return None
    values = dense(kv_b, queries.dtype)
    return products.prefill(queries, rows, values, scale) if native.suits_prefill(queries, rows, values) else None


def absorbed_attention(queries: Tensor, rows: Tensor, latent: int, scale: float) -> Tensor | None:
    """Absorbed queries (T, H, C+R) of the last T of S tokens over their latent entries (S, C+R): latents (T, H, C)."""
    products = native.products()
    if products is None or not native.suits_absorbed(queries, rows, latent):
        return None
    return products.absorbed(queries, rows, latent, scale)


def quantize(weight: Tensor, out: QuantizedMatrix) -> None:
    """Quantize a weight (rows, columns) into the memory of `out`: compiled, to the last bit as quantized.quantize does.

    Raises DsliteError where a value is not finite or too large.
    """
    products = native.products()
    taken = weight.dtype is torch.bfloat16 and weight.device.type == "cpu" and weight.stride(-1) == 1
    if products is None or not taken or not native.suits_quantized(out) or out.shape != weight.shape:
        quantized.quantize(weight, out.format, out)
        return
    products.quantize(weight, out)
    quantized.check_scales(out)
