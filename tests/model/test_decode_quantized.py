"""Whole layers with quantized weights in one call, against the same products one by one and against float32."""

from functools import cache
from typing import Any

import pytest
import torch
from support.decode import LENGTHS, SHAPES, SIZES, RecordingBank, logits, random_weights
from support.quantized import build, dequantized, quantized_weights
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.decode_cpu import CpuDecode
from dslite.model.decoder_layer import resident_experts
from dslite.model.kernels import native
from dslite.model.quantized import QuantizedMatrix, Weight
from dslite.model.quantized_layout import Weights
from dslite.model.transformer import Transformer

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled products were not built")

FORMATS: tuple[Weights, ...] = ("int8", "int4")


@cache
def parameters(shape: str, weights: Weights) -> dict[str, Weight]:
    return quantized_weights(random_weights(ModelConfig.from_dict(SHAPES[shape])), weights)


def network(shape: str, weights: Weights) -> Transformer:
    return build(SHAPES[shape], parameters(shape, weights), torch.bfloat16)


def one_by_one(model: Transformer, lengths: list[int], counts: list[int]) -> Tensor:
    """Logits by a call for each product."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuDecode, "suits", lambda *_: False)
        return logits(model, lengths, counts)[0]


def errors(shape: str, weights: Weights, lengths: list[int], counts: list[int]) -> tuple[Tensor, Tensor]:
    """The relative error of each token's logits, in one call and by single products."""
    exact, _ = logits(build(SHAPES[shape], dequantized(parameters(shape, weights)), torch.float32), lengths, counts)
    model = network(shape, weights)
    apart = one_by_one(model, lengths, counts)
    assert all(run.suits for run in CpuDecode(model.network)._runs)
    together, caches = logits(model, lengths, counts)
    for each, length, count in zip(caches, lengths, counts, strict=True):
        assert each.length == length + count
        assert torch.isfinite(each.entries(0, each.length)).all()
    error, other = ((some - exact).norm(dim=1) / exact.norm(dim=1) for some in (together, apart))
    return error, other


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_is_as_exact_as_its_products_one_by_one(level: str, shape: str, weights: Weights) -> None:
    error, other = errors(shape, weights, LENGTHS, [1] * len(LENGTHS))
    assert error.max() <= 1.5 * other.max()
    assert error.mean() <= 1.1 * other.mean()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize(("lengths", "counts"), [([129], [1]), ([0], [15]), ([3, 130, 0], [2, 5, 4])])
def test_one_token_and_tokens_of_a_sequence_are_as_exact(
    level: str, weights: Weights, lengths: list[int], counts: list[int]
) -> None:
    error, other = errors("query compression", weights, lengths, counts)
    assert error.mean() <= 1.15 * other.mean()


@pytest.mark.parametrize("weights", FORMATS)
def test_the_result_is_the_same_to_the_last_bit_with_any_number_of_threads(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network("lite-like", weights)
    first, _ = logits(model, [50, 3], [1, 2])  # one block of attention: its splits do not depend on the threads
    for threads in (1, 2, 5, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        assert torch.equal(logits(model, [50, 3], [1, 2])[0], first)


def damaged(weight: Weight) -> Weight:
    """The scales of the first group exchanged for those of the second."""
    assert isinstance(weight, QuantizedMatrix)
    copy = QuantizedMatrix(weight.data.clone(), weight.format, weight.rows, weight.columns)
    copy.scales[:, :, 0] = weight.scales[:, :, 1]
    return copy


@pytest.mark.parametrize(
    "name", ["self_attn.q_proj", "self_attn.kv_a_proj_with_mqa", "self_attn.o_proj", "mlp.shared_experts.down_proj"]
)
def test_a_mistake_in_any_matrix_shows(name: str) -> None:
    right = network("lite-like", "int8")
    wrong = parameters("lite-like", "int8") | {
        at: damaged(weight) for at, weight in parameters("lite-like", "int8").items() if f".1.{name}" in at
    }
    out, _ = logits(build(SHAPES["lite-like"], wrong, torch.bfloat16), [9], [1])
    expected, _ = logits(right, [9], [1])
    assert (out - expected).norm() > 0.02 * expected.norm()


@pytest.mark.parametrize("weights", FORMATS)
def test_routed_experts_that_lie_elsewhere_get_the_normed_tokens(level: str, weights: Weights) -> None:
    shape: dict[str, Any] = SHAPES["lite-like"] | SIZES | {"n_routed_experts": 40, "num_experts_per_tok": 6}
    config = ModelConfig.from_dict(shape)
    made = quantized_weights(random_weights(config), weights)

    def take(name: str) -> Weight:
        return made[name]

    banks = {layer: RecordingBank(resident_experts(config, layer, take)) for layer in (1, 2)}
    split, whole = (Transformer.build(config, take, make) for make in (banks.__getitem__, None))
    out, _ = logits(split, [10], [5])
    assert all(len(bank.given) == 1 for bank in banks.values())
    expected, _ = logits(whole, [10], [5])
    assert (out - expected).norm() / expected.norm() <= 0.02  # the sum of experts is rounded once more
