"""The workspace that the planner counts for a GPU, against what a pass over fake tensors allocates."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config
from support.fake_cuda import CUDA, cuda_guard
from support.machines import lite_config
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton", reason="Triton is not here")
from dslite.model import attention, decode_cuda
from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.kernels import gpu, triton_experts
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.planning.footprint import Footprint

pytestmark = pytest.mark.skipif(not cuda_guard(), reason="no C++ compiler for the guard of fake CUDA tensors")

LITE = replace(lite_config(), num_hidden_layers=3)  # a layer's values are gone before the next one's


class Peak(TorchDispatchMode):
    """The most bytes on the GPU at once, in blocks of 512 as torch's allocator gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes and storage._cdata not in given:
                    self._sizes[storage._cdata] = -(-storage.nbytes() // 512) * 512
                    self._now += self._sizes[storage._cdata]
                    weakref.finalize(storage, self._free, storage._cdata)
        self.peak = max(self.peak, self._now)
        return out

    def _free(self, storage: int) -> None:
        self._now -= self._sizes.pop(storage, 0)


def peak(config: ModelConfig, chunk: int, past: int) -> int:
    """Bytes that `chunk` tokens behind `past` others take beside weights and cache."""
    shapes = parameter_shapes(config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        model = Transformer.build(config, lambda name: torch.empty(shapes[name], dtype=torch.bfloat16, device=CUDA))
        cache = LatentKVCache(config, past + chunk, device=CUDA)
        cache.addresses(past + chunk)
        cache.commit(past)
        for _ in range(2):  # the tables of addresses are made at the first pass
            cache.truncate(past)
            with Peak() as seen:
                model.logits(model.forward(torch.zeros(chunk, dtype=torch.long), [Span(cache, chunk)], last_only=True))
    return seen.peak


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "usable", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(decode_cuda, "address", lambda tensor: 4096)
    monkeypatch.setattr(attention, "can_use_flash_attention", lambda params: params.query.shape[-1] <= 256)
    monkeypatch.setattr(attention, "can_use_efficient_attention", lambda params: True)

    def table(routed: Any, shared: Any) -> Tensor:
        return torch.empty(len(routed), 4, dtype=torch.int64, device=CUDA)

    monkeypatch.setattr(triton_experts, "address_table", table)


@pytest.mark.parametrize(("chunk", "context"), [(2048, 32_768), (4096, 32_768), (2048, 16_384), (2048, 163_840)])
def test_a_chunk_of_lite_behind_a_long_context_takes_what_is_planned_to_the_byte(chunk: int, context: int) -> None:
    assert peak(LITE, chunk, context - chunk) == Footprint(LITE, "bfloat16").gpu_workspace(chunk, context)


@pytest.mark.parametrize(("chunk", "context"), [(2048, 2048), (512, 1512), (2048, 4096), (64, 32_768), (256, 300)])
def test_no_chunk_of_lite_takes_more_than_is_planned(chunk: int, context: int) -> None:
    assert peak(LITE, chunk, context - chunk) <= Footprint(LITE, "bfloat16").gpu_workspace(chunk, context)


def test_other_sizes_take_no_more_than_is_planned() -> None:
    for changes in ({}, {"q_lora_rank": 24}, {"num_attention_heads": 16}, {"n_shared_experts": None}):
        config = ModelConfig.from_dict(tiny_config(qk_nope_head_dim=16, qk_rope_head_dim=8, **changes))
        for chunk, context in ((64, 64), (64, 2000), (256, 256)):
            planned = Footprint(config, "bfloat16").gpu_workspace(chunk, context)
            assert peak(config, chunk, context - chunk) <= planned + 512 * 40  # small tensors are rounded up
