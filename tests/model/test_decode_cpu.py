"""Whole layers by the compiled kernel, against the plain path of the same network in float32 and in BF16."""

from typing import Any

import pytest
import torch
from support.checkpoints import YARN, tiny_config
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.decoder_layer import resident_experts
from dslite.model.kernels import native
from dslite.model.moe import Gate, ResidentExperts
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache

pytestmark = pytest.mark.skipif(not native.levels(), reason="the compiled products were not built")

# Every token goes to every expert: in BF16 a near tie may fall differently, and such a row would say nothing.
_SIZES: dict[str, Any] = {
    "n_routed_experts": 3,
    "num_experts_per_tok": 3,
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_attention_heads": 6,
    "vocab_size": 320,
}
SHAPES: dict[str, dict[str, Any]] = {
    "lite-like": tiny_config(**_SIZES),
    "query compression": tiny_config(**_SIZES, q_lora_rank=32),
    "dense layers only": tiny_config(**_SIZES, first_k_dense_replace=3),
    "no shared experts": tiny_config(**_SIZES, n_shared_experts=None),
    "one head, scaled experts": tiny_config(**_SIZES | {"num_attention_heads": 1}, routed_scaling_factor=2.5),
    "other mscale": tiny_config(**_SIZES, rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.4}),
}
LENGTHS = [0, 1, 2, 3, 4, 5, 62, 63, 64, 65, 127, 129, 200]


@pytest.fixture(params=native.LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param not in native.levels():
        pytest.skip(f"this processor has no {request.param}")
    made = native.products(request.param)
    monkeypatch.setattr(native, "products", lambda: made)
    name: str = request.param
    return name


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """The same BF16 weights every time."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(size, generator=generator) * (0.14 if len(size) > 1 else 0.1) + (len(size) == 1)).bfloat16()
        for name, size in parameter_shapes(config).items()
    }


def network(shape: dict[str, Any], dtype: torch.dtype) -> Transformer:
    config = ModelConfig.from_dict(shape)
    weights = random_weights(config)
    return Transformer.build(config, lambda name: weights[name].to(dtype))


def cache(config: ModelConfig, length: int, room: int, dtype: torch.dtype, seed: int = 0) -> LatentKVCache:
    """A cache of random rows, poisoned behind them."""
    made = LatentKVCache(config, length + room, dtype=dtype)
    made.reserve(length + room).fill_(float("nan"))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(config.num_hidden_layers, length, config.latent_width, generator=generator)
    made.put(rows.bfloat16().to(dtype))
    return made


def logits(model: Transformer, lengths: list[int], counts: list[int]) -> tuple[Tensor, list[LatentKVCache]]:
    caches = [
        cache(model.config, length, count, model.dtype, seed)
        for seed, (length, count) in enumerate(zip(lengths, counts, strict=True))
    ]
    ids = torch.randint(0, 320, (sum(counts),), generator=torch.Generator().manual_seed(1))
    spans = [Span(each, count) for each, count in zip(caches, counts, strict=True)]
    with torch.inference_mode():
        return model.logits(model.forward(ids, spans, "absorbed")), caches


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


class GraphRecorder:
    """Experts that are not at hand: the layer must end behind the choice."""

    def __init__(self, bank: ResidentExperts) -> None:
        self.bank = bank
        self.given: list[tuple[Tensor, Tensor, Tensor]] = []

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        pass

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        self.given.append((hidden, expert_ids, weights))
        return self.bank(hidden, expert_ids, weights)


def test_experts_elsewhere_are_asked_as_the_gate_says(level: str) -> None:
    config = ModelConfig.from_dict(SHAPES["lite-like"] | {"n_routed_experts": 40, "num_experts_per_tok": 6})
    weights = random_weights(config)
    banks = {layer: GraphRecorder(resident_experts(config, layer, weights.__getitem__)) for layer in (1, 2)}
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
        tiny_config(**_SIZES | {"hidden_size": 100}),
        tiny_config(**_SIZES | {"qk_rope_head_dim": 30}),
        tiny_config(**_SIZES | {"n_routed_experts": 16}, n_group=8, topk_group=3, topk_method="group_limited_greedy"),
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
