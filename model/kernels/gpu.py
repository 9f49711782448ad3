"""Checks whether a device runs the kernels for one token: they need CUDA, tensor cores for BF16, and a working Triton.

Triton is imported only where there is a GPU: the import takes long, and most systems without a GPU do not have it.
"""

import importlib.util
import logging
import os
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)
_LEAST_CAPABILITY = (8, 0)  # BF16 products on tensor cores


@cache
def usable(device: torch.device) -> bool:
    """Whether the kernels run on a device. The first call compiles and runs one of them."""
    if device.type != "cuda" or not torch.cuda.is_available() or os.environ.get("DSLITE_KERNELS") == "torch":
        return False
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY or importlib.util.find_spec("triton") is None:
        return False
    try:
        return _works(device)
    # Triton raises its own errors, its compilers' and those of subprocess; after any of them torch's kernels are used.
    except Exception as error:
        log.warning("Triton does not run here, so decoding uses torch's kernels: %s", error)
        return False


def _works(device: torch.device) -> bool:
    """Whether a small product comes out right."""
    from dslite.model.kernels.triton_products import launch_add_product

    x = torch.arange(16.0, device=device)[None]
    weight, out = torch.eye(16, device=device), torch.empty_like(x)
    launch_add_product(x, weight, x, out)
    return torch.equal(out, 2 * x)


def grouped_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: Tensor, width: int) -> Tensor:
    """See triton_grouped.experts, which needs Triton."""
    from dslite.model.kernels import triton_grouped

    return triton_grouped.experts(hidden.contiguous(), expert_ids.contiguous(), weights.contiguous(), table, width)


def head(hidden: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """hidden (T, D), normed, times weight (vocabulary, D): float32 (T, vocabulary) in one launch; None for many."""
    from dslite.model.kernels.triton_products import TOKEN_TILE, launch_norm_product

    if not 1 <= hidden.shape[0] <= TOKEN_TILE or not (weight.is_contiguous() and hidden.is_contiguous()):
        return None
    logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=torch.float32, device=hidden.device)
    launch_norm_product(hidden, norm, weight, None, logits, eps)
    return logits


def draw(logits: Tensor, numbers: Tensor, least: Tensor, tokens: int) -> Tensor:
    """See triton_sampling.draw, which needs Triton."""
    from dslite.model.kernels import triton_sampling

    return triton_sampling.draw(logits, numbers, least, tokens)
