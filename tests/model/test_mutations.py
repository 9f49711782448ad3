"""The classic mistakes of this architecture, planted: each moves what test_fidelity.py compares by at least a hundred
times its tolerance, so that none could pass there.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.checkpoints import load_model, tiny_config, write_checkpoint
from support.forward import random_ids, read_once
from support.oracle import Oracle
from support.tokenizers import BOS_ID, CHAT_TEMPLATE
from torch import Tensor

from dslite.model import attention as attention_module
from dslite.model.attention import MultiHeadLatentAttention, rms_norm
from dslite.model.config import ModelConfig
from dslite.model.moe import Gate
from dslite.model.transformer import Transformer
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message
from dslite.runtime.text.tokenizer import Tokenizer

TOLERANCE = 2e-5
VISIBLE = 100 * TOLERANCE

Case = tuple[Path, Transformer, list[int], Tensor]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A folder, its network, token ids, and transformers' log-probabilities of them."""
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(), seed=1)
    model, oracle = load_model(folder), Oracle(folder)
    ids = random_ids(96, model.config.vocab_size)
    return folder, model, ids, oracle.logprobs(ids)


def drop_m_squared(patch: Patch) -> None:
    patch.setattr(ModelConfig, "softmax_scale", property(lambda config: config.qk_head_dim**-0.5))


def rotate_halves_instead_of_neighbours(patch: Patch) -> None:
    def rotate(x: Tensor, factors: Tensor) -> Tensor:
        real, imaginary = x.float().chunk(2, dim=-1)
        factors = factors.view(factors.shape[0], *[1] * (x.dim() - 2), factors.shape[1])
        turned = torch.complex(real, imaginary) * factors
        return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)

    patch.setattr(attention_module, "rotate", rotate)


def gate_in_bfloat16(patch: Patch) -> None:
    def choose(gate: Gate, hidden: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(hidden.bfloat16(), gate.weight.bfloat16()).softmax(-1)
        weights, expert_ids = scores.topk(gate.config.num_experts_per_tok, dim=-1)
        return expert_ids, weights.float()

    patch.setattr(Gate, "__call__", choose)


def renormalise_the_chosen_experts(patch: Patch) -> None:
    original = Gate.__call__

    def choose(gate: Gate, hidden: Tensor) -> tuple[Tensor, Tensor]:
        expert_ids, weights = original(gate, hidden)
        return expert_ids, weights / weights.sum(-1, keepdim=True)

    patch.setattr(Gate, "__call__", choose)


def norm_the_rotary_key_too(patch: Patch) -> None:
    original = MultiHeadLatentAttention._entries

    def rows(attention: MultiHeadLatentAttention, hidden: Tensor, factors: Tensor) -> Tensor:
        config = attention.config
        latent, k_pe = original(attention, hidden, factors).split([config.kv_lora_rank, config.qk_rope_head_dim], -1)
        return torch.cat([latent, rms_norm(k_pe, torch.ones(config.qk_rope_head_dim), 1e-6)], dim=-1)

    patch.setattr(MultiHeadLatentAttention, "_entries", rows)


def drop_the_weight_of_the_latent_norm(patch: Patch) -> None:
    original = MultiHeadLatentAttention._entries

    def rows(attention: MultiHeadLatentAttention, hidden: Tensor, factors: Tensor) -> Tensor:
        unscaled = replace(attention, kv_a_layernorm=torch.ones_like(attention.kv_a_layernorm))
        return original(unscaled, hidden, factors)

    patch.setattr(MultiHeadLatentAttention, "_entries", rows)


def turn_queries_one_position_too_far(patch: Patch) -> None:
    original = MultiHeadLatentAttention._queries

    def queries(attention: MultiHeadLatentAttention, hidden: Tensor, factors: Tensor) -> Tensor:
        return original(attention, hidden, factors * factors[1])

    patch.setattr(MultiHeadLatentAttention, "_queries", queries)


MISTAKES: list[Callable[[Patch], None]] = [
    drop_m_squared,
    rotate_halves_instead_of_neighbours,
    gate_in_bfloat16,
    renormalise_the_chosen_experts,
    norm_the_rotary_key_too,
    drop_the_weight_of_the_latent_norm,
    turn_queries_one_position_too_far,
]


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_moves_the_logprobs_by_a_hundred_tolerances(
    case: Case, monkeypatch: Patch, plant: Callable[[Patch], None]
) -> None:
    _, model, ids, expected = case
    assert (read_once(model, ids) - expected).abs().max() <= TOLERANCE

    plant(monkeypatch)

    assert (read_once(model, ids) - expected).abs().max() >= VISIBLE


def test_a_second_begin_of_sentence_token_moves_the_logprobs_by_a_hundred_tolerances(
    case: Case, tmp_path: Path
) -> None:
    folder, model, _, _ = case
    messages = [Message("user", "the answer in a word?")]
    right = ChatTemplate(Tokenizer.from_folder(folder)).encode(messages)
    expected = Oracle(folder).logprobs(right)
    assert right.count(BOS_ID) == 1
    assert (read_once(model, right) - expected).abs().max() <= TOLERANCE

    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = "{{ bos_token }}" + CHAT_TEMPLATE
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    twice = ChatTemplate(Tokenizer.from_folder(tmp_path)).encode(messages)

    assert twice == [BOS_ID, *right]
    assert (read_once(model, twice)[1:] - expected).abs().max() >= VISIBLE
    assert (read_once(model, twice)[-1] - expected[-1]).abs().max() >= VISIBLE
