"""Networks for the kernels that compute whole layers of few tokens, and what is read with them."""

from typing import Any

import torch
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.moe import ResidentExperts
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from support.checkpoints import YARN, tiny_config

# Every token goes to every expert: in BF16 a near tie may fall differently, and such a row would say nothing.
SIZES: dict[str, Any] = {
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
    "lite-like": tiny_config(**SIZES),
    "query compression": tiny_config(**SIZES, q_lora_rank=32),
    "dense layers only": tiny_config(**SIZES, first_k_dense_replace=3),
    "no shared experts": tiny_config(**SIZES, n_shared_experts=None),
    "one head, scaled experts": tiny_config(**SIZES | {"num_attention_heads": 1}, routed_scaling_factor=2.5),
    "other mscale": tiny_config(**SIZES, rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.4}),
}
LENGTHS = [0, 1, 2, 3, 4, 5, 62, 63, 64, 65, 127, 129, 200]


def random_weights(config: ModelConfig) -> dict[str, Tensor]:
    """The same BF16 weights every time."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: (torch.randn(size, generator=generator) * (0.14 if len(size) > 1 else 0.1) + (len(size) == 1)).bfloat16()
        for name, size in parameter_shapes(config).items()
    }


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


class RecordingBank:
    """Experts that are not at hand: the layer must end behind the choice."""

    def __init__(self, bank: ResidentExperts) -> None:
        self.bank = bank
        self.given: list[tuple[Tensor, Tensor, Tensor]] = []

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        pass

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        self.given.append((hidden, expert_ids, weights))
        return self.bank(hidden, expert_ids, weights)
