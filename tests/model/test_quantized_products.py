"""The CPU's products with quantized weights, at every level, against their definition and against float32."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.checkpoints import random_tensors, tiny_config
from support.forward import new_cache, random_ids, read, read_batch
from support.quantized import build, dequantized, quantized_weights
from torch import Tensor

from dslite.model import kernels
from dslite.model.errors import DsliteError
from dslite.model.kernels import native
from dslite.model.kernels.library import levels
from dslite.model.kernels.native import ExpertTable
from dslite.model.quantized import QuantizedMatrix, mlp_views, quantize
from dslite.model.quantized_layout import WeightFormat, Weights, mlp_bytes

FORMATS: tuple[WeightFormat, ...] = ("int8", "int4")
GROUP = 32

pytestmark = pytest.mark.skipif(not levels(), reason="the compiled library is not here")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def products(level: str) -> native.NativeProducts:
    found = native.products(level)
    assert found is not None
    return found


def rounded(x: Tensor) -> Tensor:
    """x (T, k) as the kernels quantize it, in float64: groups of 32 in int8 by a scale without its last three bits."""
    groups = F.pad(x.float(), (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    scales = ((scales.view(torch.int32) + 4) & ~7).view(torch.float32)
    inverse = torch.where(scales > 0, 1 / scales, 0)
    values = (groups * inverse).round().clamp(-127, 127)
    return (values.double() * scales.double()).flatten(1)[:, : x.shape[1]]


def relative(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (48, 96), (5, 40), (16, 2048), (70, 1408), (33, 33)])
@pytest.mark.parametrize("tokens", [1, 2, 7, 20])
def test_a_product_is_the_sum_of_its_integers(
    level: str, format: WeightFormat, rows: int, columns: int, tokens: int
) -> None:
    weight = quantize(normal(rows, columns, seed=1) * columns**-0.5, format)
    x = (normal(tokens, columns + 3, seed=2) * 3).bfloat16()[:, :columns]  # rows lie apart
    expected = rounded(x) @ weight.dequantize(torch.float64).T
    out = products(level).quantized_linear(x, weight, torch.float32)
    assert relative(out, expected) < 2e-6
    assert torch.equal(products(level).quantized_linear(x, weight), out.bfloat16())
    exact = x.double() @ weight.dequantize(torch.float64).T
    assert relative(out, exact) < 1e-2  # what int8 activations lose


@pytest.mark.parametrize("level", levels())
def test_tokens_that_are_zero_or_very_small_or_large_are_exact(level: str) -> None:
    weight = quantize(normal(32, 64, seed=1), "int8")
    x = torch.zeros(4, 64, dtype=torch.bfloat16)
    x[1], x[2], x[3] = 1e-38, 1e30, -0.0
    out = products(level).quantized_linear(x, weight, torch.float32)
    assert torch.equal(out[0], torch.zeros(32))
    assert relative(out[2], rounded(x)[2] @ weight.dequantize(torch.float64).T) < 2e-6
    assert out.isfinite().all()


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_that_is_no_number_gives_none_and_the_others_stay(level: str, bad: float) -> None:
    weight, x = quantize(normal(32, 128, seed=1), "int8"), normal(8, 128).bfloat16()
    expected = products(level).quantized_linear(x, weight, torch.float32)
    x[3, 70] = bad
    out = products(level).quantized_linear(x, weight, torch.float32)
    assert not out[3].isfinite().any()
    assert torch.equal(out[[0, 1, 2, 4, 5, 6, 7]], expected[[0, 1, 2, 4, 5, 6, 7]])


Expert = tuple[QuantizedMatrix, QuantizedMatrix, QuantizedMatrix]


def expert(hidden: int, width: int, format: WeightFormat, seed: int) -> Expert:
    views = mlp_views(torch.empty(mlp_bytes(hidden, width, format), dtype=torch.uint8), format, hidden, width)
    for place, view in enumerate(views):
        quantize(normal(*view.shape, seed=seed + place) * view.shape[1] ** -0.5, format, view)
    gate, up, down = views
    return gate, up, down


def by_definition(x: Tensor, ids: Tensor, weights: Tensor, experts: list[Expert]) -> Tensor:
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(len(x)):
        for place, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            gate, up, down = (matrix.dequantize(torch.float64) for matrix in experts[place])
            own = rounded(x[token : token + 1])
            inner = rounded((F.silu(own @ gate.T) * (own @ up.T)).float())
            out[token] += weight * (inner @ down.T)[0]
    return out


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tokens", [1, 3, 16, 40])
@pytest.mark.parametrize(("hidden", "width", "count", "chosen"), [(64, 32, 6, 3), (96, 80, 4, 1), (48, 17, 5, 5)])
def test_experts_are_the_sums_of_their_integers(
    level: str, format: WeightFormat, tokens: int, hidden: int, width: int, count: int, chosen: int
) -> None:
    experts = [expert(hidden, width, format, 10 * seed) for seed in range(count)]
    x = normal(tokens, hidden, seed=7).bfloat16()
    weights, ids = torch.rand(tokens, count, generator=torch.Generator().manual_seed(3)).topk(chosen)
    out = products(level).experts(x, ids, weights.contiguous(), ExpertTable(experts))
    # A value between two integers may be rounded either way: sums of float32 and float64 differ in the last bit.
    assert relative(out, by_definition(x, ids, weights, experts)) < 2e-3


def test_experts_of_several_widths_share_a_call() -> None:
    experts = [expert(64, width, "int8", 10 * width) for width in (32, 96, 64)]
    x, ids = normal(5, 64).bfloat16(), torch.tensor([[0, 1, 2]] * 5)
    weights = torch.ones(5, 3)
    found = native.products()
    assert found is not None
    out = found.experts(x, ids, weights, ExpertTable(experts))
    assert relative(out, by_definition(x, ids, weights, experts)) < 2e-3


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = [expert(64, 96, "int4", 10 * seed) for seed in range(6)]
    x, table = normal(9, 64).bfloat16(), ExpertTable(experts)
    weights, ids = torch.rand(9, 6, generator=torch.Generator().manual_seed(3)).topk(3)
    found = native.products()
    assert found is not None
    outs = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        outs.append((found.experts(x, ids, weights.contiguous(), table), found.quantized_linear(x, experts[0][0])))
    for out in outs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(out, outs[0], strict=True))


# Whole networks.


def networks(weights: Weights, **config: Any) -> tuple[Any, Any]:
    """A quantized network in BF16, and the float32 one of its dequantized weights."""
    raw = tiny_config(vocab_size=160, **config)
    parameters = quantized_weights(random_tensors(raw, std=0.14), weights)
    return build(raw, parameters, torch.bfloat16), build(raw, dequantized(parameters), torch.float32)


def kl(expected: Tensor, out: Tensor) -> float:
    return float((expected.exp() * (expected - out)).sum(-1).mean())


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("config", [{}, {"q_lora_rank": 32}, {"first_k_dense_replace": 0}], ids=str)
def test_a_network_by_the_kernels_is_near_its_dequantized_weights(weights: Weights, config: dict[str, Any]) -> None:
    """One token or many, alone and in a batch; not much farther than torch, which dequantizes the weights to BF16."""
    model, exact = networks(weights, **config)
    prompt = random_ids(60, 160)
    expected = read(exact, new_cache(exact, 60), prompt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "suits_quantized", lambda weight: False)
        plain, _ = networks(weights, **config)
        near = kl(expected, read(plain, new_cache(plain, 60), prompt).float())
    limit = max(4 * near, 3e-3)
    at_once = read(model, new_cache(model, 60), prompt).float()
    cache = new_cache(model, 60)
    one_by_one = torch.cat([read(model, cache, [token]) for token in prompt]).float()
    others = [(new_cache(model, 60), random_ids(3 + place, 160, seed=place)) for place in range(3)]
    batch = read_batch(model, [(new_cache(model, 60), prompt), *others])[0].float()
    assert max(kl(expected, out) for out in (at_once, one_by_one, batch)) < limit


MISTAKES = {
    "a neighbouring group's scale": lambda data: (
        data[..., :64].view(torch.int16).copy_(data[..., :64].view(torch.int16).roll(16, -1))
    ),
    "values one off": lambda data: data[..., 64:].view(torch.int8).add_(1),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_weights_shows(mistake: Any) -> None:
    """So do the comparisons above see it."""
    weight = quantize(normal(32, 128, seed=1), "int8")
    x, found = normal(4, 128).bfloat16(), native.products()
    assert found is not None
    right = rounded(x) @ weight.dequantize(torch.float64).T
    mistake(weight.data.unflatten(1, (-1, 64 + 1024)))
    assert relative(found.quantized_linear(x, weight, torch.float32), right) > 1e-3


def test_without_the_library_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = quantize(normal(32, 64, seed=1), "int4"), normal(3, 64).bfloat16()
    with_it = kernels.linear(x, weight)
    monkeypatch.setattr(native, "products", lambda level=None: None)
    assert relative(kernels.linear(x, weight), with_it) < 2e-2


# Quantizing.


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (5, 40), (70, 1408), (200, 300)])
@pytest.mark.parametrize("spread", ["normal", "heavy tails", "tiny", "halves"])
def test_the_compiled_quantizer_is_the_reference_bit_by_bit(
    level: str, format: WeightFormat, rows: int, columns: int, spread: str
) -> None:
    weight = normal(rows, columns + 7, seed=rows)
    weight = {
        "normal": weight * 0.02,
        "heavy tails": weight**7,
        "tiny": weight * 1e-33,
        "halves": (weight * 4).round() / 2,  # many ties
    }[spread].bfloat16()[:, :columns]
    weight[0, :32] = 0
    expected = quantize(weight, format)
    out = QuantizedMatrix.of(torch.full_like(expected.data, 7).flatten(), format, rows, columns)
    products(level).quantize(weight, out)
    assert torch.equal(out.data, expected.data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_the_compiled_quantizer_refuses_what_the_reference_does(bad: float) -> None:
    weight = normal(20, 64).bfloat16()
    weight[3, 40] = bad
    for format in FORMATS:
        out = quantize(normal(20, 64), format)
        with pytest.raises(DsliteError, match="cannot be quantized"):
            kernels.quantize(weight, out)


def test_gate_and_up_are_quantized_into_their_places() -> None:
    hidden, width = 64, 48
    weights = [normal(*shape, seed=n).bfloat16() for n, shape in enumerate([(width, hidden)] * 2 + [(hidden, width)])]
    data = [torch.zeros(mlp_bytes(hidden, width, "int8"), dtype=torch.uint8) for _ in range(2)]
    for own, quantizer in zip(data, (kernels.quantize, lambda w, out: quantize(w, "int8", out)), strict=True):
        for weight, view in zip(weights, mlp_views(own, "int8", hidden, width), strict=True):
            quantizer(weight, view)
    assert torch.equal(*data)
