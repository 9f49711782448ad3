"""The experts of a prompt on a GPU that is not there: what is launched. test_triton_kernels checks the numbers."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not here")
from support.checkpoints import tiny_config
from support.fake_cuda import CUDA, FakeGpu, cuda_guard, fake_gpu
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode

from dslite.model.config import ModelConfig
from dslite.model.kernels import gpu, triton_experts
from dslite.model.moe import MLP, ResidentExperts
from dslite.runtime.weights.expert_blocks import ExpertBlocks

HIDDEN, WIDTH, EXPERTS, CHOSEN = 48, 16, 8, 3
CONFIG = ModelConfig.from_dict(
    tiny_config(hidden_size=HIDDEN, moe_intermediate_size=WIDTH, n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN)
)


def in_blocks(dtype: torch.dtype, device: torch.device | str = "cpu") -> ResidentExperts:
    """Random experts in memory as the loader gives it."""
    matrix = CONFIG.hidden_size * CONFIG.moe_intermediate_size * dtype.itemsize
    blocks = ExpertBlocks(
        CONFIG.n_routed_experts, 3, matrix, lambda count: torch.empty(count, dtype=torch.uint8, device=device)
    )
    random = torch.Generator().manual_seed(0)

    def take(name: str, *shape: int) -> Tensor:
        target = blocks.allocate(name, shape[0] * shape[1] * dtype.itemsize).view(dtype).view(shape)
        return target if device is CUDA else target.copy_(torch.randn(shape, generator=random) * 0.3)

    prefix = "model.layers.1.mlp.experts."
    return ResidentExperts(
        [
            MLP(
                take(f"{prefix}{expert}.gate_proj.weight", WIDTH, HIDDEN),
                take(f"{prefix}{expert}.up_proj.weight", WIDTH, HIDDEN),
                take(f"{prefix}{expert}.down_proj.weight", HIDDEN, WIDTH),
            )
            for expert in range(EXPERTS)
        ]
    )


class Launches(TorchDispatchMode):
    """The operations that launch something on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not str(func).startswith(("aten.empty", "aten.new_empty", "aten.detach")):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not cuda_guard(), reason="no C++ compiler for the guard of fake CUDA tensors")
def test_a_chunk_on_a_gpu_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors raise where the host would need a value; experts one by one do."""
    monkeypatch.setattr(gpu, "usable", lambda device: device.type == "cuda")
    with fake_gpu(FakeGpu(lambda *_: pytest.fail("nothing is routed here"))), torch.inference_mode():
        table = torch.empty(EXPERTS, 4, dtype=torch.int64, device=CUDA)
        monkeypatch.setattr(triton_experts, "address_table", lambda *_: table)
        bank = in_blocks(torch.bfloat16, CUDA)
        assert bank.addresses is table  # made once
        hidden = torch.empty(64, HIDDEN, dtype=torch.bfloat16, device=CUDA)
        ids = torch.empty(64, CHOSEN, dtype=torch.int64, device=CUDA)
        weights = torch.empty(64, CHOSEN, device=CUDA)
        with Launches() as launches:
            assert bank(hidden, ids, weights).shape == (64, HIDDEN)
        names = ("sort_choices", "gate_up_rows", "down_rows", "combine_parts")
        assert launches.names == [f"dslite.{name}.default" for name in names]
        monkeypatch.setattr(gpu, "usable", lambda device: False)
        with pytest.raises(DynamicOutputShapeException):
            bank(hidden, ids, weights)
