"""Experts by torch's grouped product against experts one by one, on the CPU; and on a GPU that is not there."""

from dataclasses import replace
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
from dslite.model.kernels import gpu, grouped, triton_experts
from dslite.model.moe import MLP, ResidentExperts
from dslite.runtime.weights.expert_blocks import ExpertBlocks

HIDDEN, WIDTH, EXPERTS, CHOSEN = 48, 16, 8, 3
CONFIG = ModelConfig.from_dict(
    tiny_config(hidden_size=HIDDEN, moe_intermediate_size=WIDTH, n_routed_experts=EXPERTS, num_experts_per_tok=CHOSEN)
)


def in_blocks(dtype: torch.dtype, device: torch.device | str = "cpu") -> ResidentExperts:
    """Random experts in memory as the loader gives it."""
    blocks = ExpertBlocks(CONFIG, dtype.itemsize, lambda count: torch.empty(count, dtype=torch.uint8, device=device))
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


def choices(tokens: int, most: int = EXPERTS) -> tuple[Tensor, Tensor]:
    """Random choices among the first `most` experts, and weights."""
    random = torch.Generator().manual_seed(1)
    weights, ids = torch.rand(tokens, most, generator=random).topk(CHOSEN)
    return ids, weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("tokens", "most"), [(2, EXPERTS), (17, EXPERTS), (40, 3), (100, 5)])
def test_grouped_experts_equal_experts_one_by_one(dtype: torch.dtype, tolerance: float, tokens: int, most: int) -> None:
    """Some experts are chosen by nobody where fewer than all can be."""
    bank = in_blocks(dtype)
    hidden = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(2)).to(dtype)
    ids, weights = choices(tokens, most)
    assert bank.stacks is not None
    out, expected = grouped.experts(hidden, ids, weights, bank.stacks), bank.reference(hidden, ids, weights)
    assert out.dtype == torch.float32
    assert (out - expected).norm() / expected.norm() <= tolerance


def test_experts_that_lie_apart_have_no_stack() -> None:
    bank = in_blocks(torch.float32)
    moved = [*bank.experts[:-1], replace(bank.experts[-1], up_proj=bank.experts[-1].up_proj.clone())]
    assert ResidentExperts(moved).stacks is None
    assert ResidentExperts([bank.experts[index] for index in (0, 2, 1)]).stacks is None


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
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("hip", [None, "6.4"])
def test_a_chunk_on_a_gpu_waits_for_nothing(
    capability: tuple[int, int], hip: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake tensors raise where the host would need a value; experts one by one do."""
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
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
        if hip is None and capability[0] in (9, 10):
            assert sum("grouped_mm" in name for name in launches.names) == 3
        else:
            assert launches.names == [
                f"dslite.{name}.default" for name in ("sort_choices", "gate_up_rows", "down_rows", "combine_parts")
            ]
        monkeypatch.setattr(gpu, "usable", lambda device: False)
        if hip is not None or capability[0] not in (9, 10):
            with pytest.raises(DynamicOutputShapeException):
                bank(hidden, ids, weights)
