"""From a checked folder to a network that runs, with progress."""

from collections.abc import Callable

import torch
from torch import Tensor

from dslite.model.transformer import Transformer
from dslite.runtime.checkpoint import Checkpoint
from dslite.runtime.events import Loading

_REPORT_BYTES = 64 * 2**20


def load(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[Loading], None] = lambda _: None,
) -> Transformer:
    """Build the network of a checkpoint on a device.

    On the CPU, in the checkpoint's own dtype, weights are used where they are mapped: nothing is read or copied here.
    """
    total, done, told = checkpoint.nbytes, 0, 0

    def take(name: str) -> Tensor:
        nonlocal done, told
        tensor = checkpoint.tensor(name)
        done += tensor.nbytes
        if done - told >= _REPORT_BYTES or done == total:
            told = done
            report(Loading(done, total))
        return tensor.to(device=device, dtype=dtype)

    report(Loading(0, total))
    return Transformer.build(checkpoint.config, take)
