"""Whole layers by the compiled kernel, against the plain path of the same network in float32 and in BF16."""

from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config
from support.decode import LENGTHS, SHAPES, SIZES, RecordingBank, cache, logits, random_weights
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.decoder_layer import resident_experts
from dslite.model.kernels import native
from dslite.model.moe import Gate
from dslite.model.transformer import Transformer

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled products were not built")


def network(shape: dict[str, Any], dtype: torch.dtype) -> Transformer:
    config = ModelConfig.from_dict(shape)
    weights = random_weights(config)
    return Transformer.build(config, lambda name: weights[name].to(dtype))


def plainly(monkeypatch: pytest.MonkeyPatch, model: Transformer, lengths: list[int], counts: list[int]) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(native, "products", lambda: None)
        return logits(model, lengths, counts)[0]


def assert_no_worse_than_torch(
    shape: dict[str, Any], lengths: list[int], counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(shape, torch.bfloat16)
    exact, _ = logits(network(shape, torch.float32), lengths, counts)
    reference = plainly(monkeypatch, model, lengths, counts)
    out, caches = logits(model, lengths, counts)
    assert not torch.equal(out, reference), "the kernel was not used"
    error, reference_error = ((some - exact).norm(dim=1) / exact.norm(dim=1) for some in (out, reference))
    assert error.max() <= 1.5 * reference_error.max()
    assert error.mean() <= 1.1 * reference_error.mean()
    for each, length, count in zip(caches, lengths, counts, strict=True):
        assert each.length == length + count
        assert torch.isfinite(each.entries(0, each.length)).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_token_is_as_exact_as_by_torch(level: str, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_no_worse_than_torch(shape, LENGTHS, [1] * len(LENGTHS), monkeypatch)


@pytest.mark.parametrize(("lengths", "counts"), [([0], [15]), ([70], [9]), ([3, 130, 0], [2, 5, 4])])
def test_tokens_of_a_sequence_see_those_before_them(
    level: str, lengths: list[int], counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_no_worse_than_torch(SHAPES["lite-like"], lengths, counts, monkeypatch)


def test_tokens_together_equal_tokens_one_by_one(level: str) -> None:
    model = network(SHAPES["lite-like"], torch.bfloat16)
    together, _ = logits(model, [66], [6])
    ids = torch.randint(0, 320, (6,), generator=torch.Generator().manual_seed(1))
    kept = cache(model.config, 66, 6, torch.bfloat16)
    with torch.inference_mode():
        single = [model.logits(model.forward(ids[place : place + 1], [Span(kept, 1)])) for place in range(6)]
    error = (torch.cat(single) - together).norm() / together.norm()
    assert error <= 0.004  # sums are added in another order: a value may round to its neighbour


def test_the_result_is_the_same_to_the_last_bit_every_time(level: str) -> None:
    model = network(SHAPES["lite-like"], torch.bfloat16)
    first, _ = logits(model, [200], [1])
    for _ in range(5):
        assert torch.equal(logits(model, [200], [1])[0], first)


def test_experts_elsewhere_are_asked_as_the_gate_says(level: str) -> None:
    config = ModelConfig.from_dict(SHAPES["lite-like"] | {"n_routed_experts": 40, "num_experts_per_tok": 6})
    weights = random_weights(config)
    banks = {layer: RecordingBank(resident_experts(config, layer, weights.__getitem__)) for layer in (1, 2)}
    split, whole = (Transformer.build(config, weights.__getitem__, make) for make in (banks.__getitem__, None))
    out, _ = logits(split, [10], [5])
    for layer, bank in banks.items():
        [(normed, ids, shares)] = bank.given
        expected_ids, expected_shares = Gate(weights[f"model.layers.{layer}.mlp.gate.weight"], config)(normed)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(shares, expected_shares, rtol=1e-5, atol=1e-7)
    expected, _ = logits(whole, [10], [5])
    assert (out - expected).norm() / expected.norm() <= 0.01  # the sum of experts is rounded once more


@pytest.mark.parametrize(
    "shape",
    [
        tiny_config(**SIZES | {"hidden_size": 100}),
        tiny_config(**SIZES | {"qk_rope_head_dim": 30}),
        tiny_config(**SIZES | {"n_routed_experts": 16}, n_group=8, topk_group=3, topk_method="group_limited_greedy"),
    ],
    ids=["hidden size", "row width", "expert groups"],
)
def test_sizes_that_the_kernel_cannot_read_take_the_plain_path(
    shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(native.NativeProducts, "layers", refuse)
    out, _ = logits(network(shape, torch.bfloat16), [4], [1])
    assert torch.isfinite(out).all()
