"""What a GPU's kernels are sized by: its multiprocessors, and the shared memory of a block."""

from functools import cache

import torch

LEAST_SHARED_MEMORY = 101_376  # bytes that every GPU from compute capability 8.0 on gives a block


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block may have: 99 KB on consumers' GPUs, 227 KB on an H100."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return LEAST_SHARED_MEMORY
    known = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", LEAST_SHARED_MEMORY)
    return int(known)
