"""Products of few rows by compiled kernels. A function answers None where none applies: the caller has the reference.

A new token is a chain of matrix-vector products, and what torch has for them is made for many rows.
"""

# T tokens  D hidden  E experts  K experts per token  H heads  S cached tokens

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.kernels import native
from dslite.model.kernels.native import ExpertTable as ExpertTable

_FIRST = torch.zeros(native.MOST_TOKENS, 1, dtype=torch.int64)
_WHOLE = torch.ones(native.MOST_TOKENS, 1)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (T, k) · weight (n, k) transposed: (T, n)."""
    products = native.products()
    if products is not None and native.suits_rows(x) and native.suits_weight(weight):
        return products.linear(x, weight)
    return F.linear(x, weight)


def gate_scores(x: Tensor, weight: Tensor) -> Tensor | None:
    """x (T, D) · weight (E, D) transposed, multiplied and added in float32: (T, E)."""
    products = native.products()
    if products is not None and native.suits_rows(x) and native.suits_weight(weight):
        return products.gate(x, weight)
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """x (T, D) / rms(x) · weight (D,)."""
    products = native.products()
    if products is not None and native.suits_rows(x) and native.suits_weight(weight):
        return products.rms_norm(x, weight, eps)
    return None


def weighted_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: ExpertTable) -> Tensor | None:
    """hidden (T, D), ids (T, K), float32 weights (T, K): the weighted sum of the experts, (T, D) in float32."""
    products = native.products()
    if products is not None and table.suits and native.suits_rows(hidden):
        return products.experts(hidden, expert_ids.contiguous(), weights.contiguous(), table)
    return None


def mlp(hidden: Tensor, table: ExpertTable) -> Tensor | None:
    """The table's one expert for every row of hidden (T, D)."""
    rows = hidden.shape[0]
    out = weighted_experts(hidden, _FIRST[:rows], _WHOLE[:rows], table)
    return None if out is None else out.to(hidden.dtype)


def absorbed_attention(queries: Tensor, kv_b_proj: Tensor, rows: Tensor, nope: int, scale: float) -> Tensor | None:
    """Rotated queries (T, H, N+R) of the last T of the cached rows (S, C+R): causal values (T, H, V)."""
    products = native.products()
    if products is None or not native.suits_attention(queries, kv_b_proj, rows, nope):
        return None
    past = rows.shape[0] - queries.shape[0]
    values = [
        products.attention(query, kv_b_proj, rows[: past + place + 1], nope, scale)
        for place, query in enumerate(queries)
    ]
    return torch.stack(values)
