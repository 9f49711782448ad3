"""The GPU's kernels interpreted on the CPU, in few programs, and a recorder that counts."""

import pytest
import torch

from dslite.model.kernels import (
    gpu,
    gpu_limits,
    triton_attention,
    triton_experts,
    triton_products,
    triton_slots,
)
from dslite.runtime.device import Launch, PlainDevice


class GraphRecorder(PlainDevice):
    """Counts what is recorded, and what is replayed."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.recorded = self.replayed = 0

    def record(self, launch: Launch) -> Launch:
        self.recorded += 1
        launch()

        def replay() -> None:
            self.replayed += 1
            launch()

        return replay


def interpret(patch: pytest.MonkeyPatch) -> None:
    """Kernels as on a GPU, in few programs, as an interpreter's time goes by them.

    A sequence is shared by three: some get nothing, some two tiles of keys.
    """
    patch.setattr(gpu, "usable", lambda device: True)
    patch.setattr(gpu_limits, "multiprocessors", lambda device: 12)
    patch.setattr(triton_attention, "MOST_SPLITS", 3)
    patch.setattr(triton_products, "TILES", ((2**31, 64, 64),))
    patch.setattr(triton_products, "TOKEN_TILES", ((2**31, 64, 256),))
    patch.setattr(triton_experts, "TILE_IN", (32, 64, 4))
    patch.setattr(triton_experts, "TOKEN_TILE_IN", (32, 256, 4))
    patch.setattr(triton_experts, "TILE_OUT", (64, 64, 4))
    patch.setattr(triton_experts, "TOKEN_TILE_OUT", (64, 64, 4))
    patch.setattr(triton_slots, "TILE_IN", (32, 64, 4))
    patch.setattr(triton_slots, "TILE_OUT", (64, 64, 4))
