"""How often experts are chosen is counted, whichever way a layer is computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.decoder_layer import resident_experts
from dslite.model.kernels import native
from dslite.model.moe import MoE
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache

_SIZES: dict[str, Any] = {
    "n_routed_experts": 24,
    "num_experts_per_tok": 6,
    "hidden_size": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_attention_heads": 6,
    "vocab_size": 320,
}
CONFIG = ModelConfig.from_dict(tiny_config(**_SIZES))


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(size, generator=generator) * 0.14 + (len(size) == 1)).bfloat16()
        for name, size in parameter_shapes(CONFIG).items()
    }


class Noted:
    """A layer's experts, and what they were asked for."""

    def __init__(self, layer: int, taken: dict[str, Tensor]) -> None:
        self.bank = resident_experts(CONFIG, layer, taken.__getitem__)
        self.asked = torch.zeros(CONFIG.n_routed_experts, dtype=torch.int64)

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        pass

    def __call__(self, hidden: Tensor, expert_ids: Tensor, shares: Tensor) -> Tensor:
        self.asked += torch.bincount(expert_ids.flatten(), minlength=len(self.asked))
        return self.bank(hidden, expert_ids, shares)


def run(model: Transformer, tokens: int, form: Any) -> list[Tensor]:
    """Each MoE layer's counts behind some tokens."""
    cache = LatentKVCache(CONFIG, tokens, dtype=torch.bfloat16)
    ids = torch.randint(0, 320, (tokens,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        model.forward(ids, [Span(cache, tokens)], form)
    return [layer.mlp.expert_counts for layer in model.layers if isinstance(layer.mlp, MoE)]


def split(taken: dict[str, Tensor]) -> tuple[Transformer, Callable[[], list[Tensor]]]:
    """A model whose experts lie elsewhere, and what they were asked for."""
    banks = {layer: Noted(layer, taken) for layer in range(CONFIG.first_k_dense_replace, CONFIG.num_hidden_layers)}
    model = Transformer.build(CONFIG, taken.__getitem__, banks.__getitem__)
    return model, lambda: [bank.asked for bank in banks.values()]


@pytest.mark.skipif(not native.levels(), reason="the compiled products were not built")
@pytest.mark.parametrize("tokens", [1, 7])
def test_the_compiled_layers_count_whom_they_choose(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = weights()
    elsewhere, asked = split(taken)
    here = run(Transformer.build(CONFIG, taken.__getitem__), tokens, "absorbed")
    apart = run(elsewhere, tokens, "absorbed")
    for counted, counted_apart, expected in zip(here, apart, asked(), strict=True):
        assert int(counted.sum()) == tokens * CONFIG.num_experts_per_tok
        assert torch.equal(counted_apart, expected)
    assert torch.equal(here[0], apart[0])  # of later layers a near tie may fall differently


def test_the_plain_layers_count_whom_they_choose() -> None:
    model, asked = split(weights())
    counted = run(model, 40, "expanded")
    for uses, expected in zip(counted, asked(), strict=True):
        assert torch.equal(uses, expected)
        assert int(uses.sum()) == 40 * CONFIG.num_experts_per_tok


def test_counts_go_on_in_and_out_of_inference_mode() -> None:
    model, _ = split(weights())
    run(model, 3, "expanded")
    cache = LatentKVCache(CONFIG, 2, dtype=torch.bfloat16)
    model.forward(torch.tensor([5, 6]), [Span(cache, 2)], "expanded")
    uses = [layer.mlp.expert_counts for layer in model.layers if isinstance(layer.mlp, MoE)]
    assert [int(each.sum()) for each in uses] == [5 * CONFIG.num_experts_per_tok] * len(uses)
