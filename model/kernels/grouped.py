"""Routed experts of many tokens on a GPU by a grouped product: a few launches for all experts.

To compute expert by expert, the host must read in every layer how many tokens chose each, waits for it, and then
launches some six hundred small kernels. A grouped product reads these counts on the device. Torch's does so on sm_90
and sm_100 only; elsewhere it waits in the same way, so there our own of triton_grouped is used.
"""

# T tokens  D hidden  E experts  K experts per token  W width of an expert

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.kernels import gpu

_FUSED = (9, 10)  # major compute capabilities


def usable(hidden: Tensor) -> bool:
    """Whether torch has a grouped product for hidden states (T, D) that does not wait for the device."""
    return (
        hidden.dtype is torch.bfloat16
        and hidden.device.type == "cuda"
        and torch.version.hip is None  # whose capabilities are numbered alike
        and hidden.shape[0] > 1
        and hidden.shape[1] % 8 == 0
        and hasattr(F, "grouped_mm")
        and torch.cuda.get_device_capability(hidden.device)[0] in _FUSED
    )


def compiled_usable(hidden: Tensor) -> bool:
    """Whether our own grouped product takes hidden states (T, D)."""
    return hidden.dtype in (torch.bfloat16, torch.float32) and gpu.usable(hidden.device)


def compiled_experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, table: Tensor, width: int) -> Tensor:
    """See triton_grouped.experts, which needs Triton."""
    from dslite.model.kernels import triton_grouped

    return triton_grouped.experts(hidden.contiguous(), expert_ids.contiguous(), weights.contiguous(), table, width)


def stack(matrices: Sequence[Tensor]) -> Tensor | None:
    """Matrices of one shape as a view (E, …), where they lie evenly spaced in one piece of memory; else None."""
    first = matrices[0]
    step = matrices[1].storage_offset() - first.storage_offset() if len(matrices) > 1 else first.numel()
    for place, matrix in enumerate(matrices):
        if (
            matrix.untyped_storage()._cdata != first.untyped_storage()._cdata
            or matrix.storage_offset() != first.storage_offset() + place * step
            or matrix.shape != first.shape
            or matrix.stride() != first.stride()
        ):
            return None
    return first.as_strided((len(matrices), *first.shape), (step, *first.stride()), first.storage_offset())


def experts(hidden: Tensor, expert_ids: Tensor, weights: Tensor, stacks: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """hidden (T, D), ids (T, K), float32 weights (T, K), gate, up (E, W, D), down (E, D, W): the sum (T, D), float32.

    Each token's experts are added in the order of its choices, so that the sum is the same every time.
    """
    gate, up, down = (stacked.transpose(-2, -1) for stacked in stacks)
    order = expert_ids.flatten().argsort(stable=True)
    rows = hidden[order // expert_ids.shape[1]]  # (T·K, D)
    chosen = torch.zeros(len(stacks[0]), dtype=torch.int32, device=hidden.device)
    chosen.scatter_add_(0, expert_ids.flatten(), torch.ones_like(order, dtype=torch.int32))
    ends = chosen.cumsum(0, dtype=torch.int32)
    inner = F.silu(F.grouped_mm(rows, gate, offs=ends)).mul_(F.grouped_mm(rows, up, offs=ends))  # (T·K, W)
    parts = torch.empty_like(rows)
    parts[order] = F.grouped_mm(inner, down, offs=ends)
    return torch.einsum("tkd,tk->td", parts.unflatten(0, expert_ids.shape).float(), weights)
