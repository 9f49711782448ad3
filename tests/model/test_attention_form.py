"""Attention is computed in the form that needs fewer operations, sequence by sequence."""

import json
from importlib.resources import files

import pytest
import torch
from torch import Tensor

from dslite import assets
from dslite.model.attention import Form, MultiHeadLatentAttention, Span
from dslite.model.config import ModelConfig
from dslite.runtime.cache.latent_cache import LatentKVCache


@pytest.fixture(scope="module")
def attention() -> MultiHeadLatentAttention:
    """One layer of Lite's shape, without numbers."""
    config = ModelConfig.from_dict(json.loads(files(assets).joinpath("deepseek-v2-lite.config.json").read_text()))
    heads, made = config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim
    shapes = {
        "q_proj": (heads * config.qk_head_dim, config.hidden_size),
        "kv_a_proj_with_mqa": (config.latent_width, config.hidden_size),
        "kv_a_layernorm": (config.kv_lora_rank,),
        "kv_b_proj": (heads * made, config.kv_lora_rank),
        "o_proj": (config.hidden_size, heads * config.v_head_dim),
    }
    return MultiHeadLatentAttention.build(config, lambda name: torch.empty(shapes[name], device="meta"))


def forms_taken(
    attention: MultiHeadLatentAttention, monkeypatch: pytest.MonkeyPatch, spans: list[tuple[int, int]]
) -> list[Form]:
    """The form of each span, given as (new tokens, cached tokens)."""
    taken: list[Form] = []
    config = attention.config

    def record(form: Form) -> None:
        def attend(self: MultiHeadLatentAttention, queries: Tensor, rows: Tensor) -> Tensor:
            taken.append(form)
            return queries.new_empty(len(queries), config.num_attention_heads, config.v_head_dim)

        monkeypatch.setattr(MultiHeadLatentAttention, f"_{form}", attend)

    record("absorbed")
    record("expanded")
    caches = [LatentKVCache(config, past + new, device="meta") for new, past in spans]
    for cache, (_, past) in zip(caches, spans, strict=True):
        cache.put(torch.empty(config.num_hidden_layers, past, config.latent_width, device="meta"))
    total = sum(new for new, _ in spans)
    attention(
        0,
        torch.empty(total, config.hidden_size, device="meta"),
        torch.empty(total, config.qk_rope_head_dim // 2, dtype=torch.complex64, device="meta"),
        [Span(cache, new) for cache, (new, _) in zip(caches, spans, strict=True)],
    )
    return taken


@pytest.mark.parametrize(
    ("new", "past", "form"),
    [
        (1, 1, "absorbed"),
        (32, 4096, "absorbed"),  # a turn of a conversation
        (160, 4096, "absorbed"),
        (512, 4096, "expanded"),  # a chunk of a prompt
        (32, 0, "expanded"),
        (32, 7, "expanded"),
    ],
)
def test_the_form_with_fewer_operations_is_taken(
    attention: MultiHeadLatentAttention, monkeypatch: pytest.MonkeyPatch, new: int, past: int, form: Form
) -> None:
    assert forms_taken(attention, monkeypatch, [(new, past)]) == [form]


def test_a_prompt_read_beside_answers_does_not_change_their_form(
    attention: MultiHeadLatentAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forms_taken(attention, monkeypatch, [(300, 0), (1, 2000), (1, 31)]) == ["expanded", "absorbed", "absorbed"]
