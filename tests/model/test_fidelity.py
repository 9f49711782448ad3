"""Our numbers against transformers' DeepseekV2ForCausalLM: float32, CPU, tiny random checkpoints.

A near tie of two experts may fall differently in two correct programs. No tolerance is widened for that: `ROUTING_GAP`
shows that none of these checkpoints and prompts meets one.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import YARN, load_model, tiny_config, write_checkpoint
from support.forward import greedy, random_ids, read_once
from support.oracle import Oracle

from dslite.model.attention import Form
from dslite.model.config import ModelConfig
from dslite.model.transformer import Transformer
from dslite.runtime.weights.checkpoint import Checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5  # of log-probabilities; float32 noise was seen at 4e-6
FAR_TOLERANCE = 5e-5  # beyond position 4,096, where float32 angles are coarser
ROUTING_GAP = 1e-5  # between the last expert chosen and the first left out; float32 noise of a score is 1e-7

SHAPES: dict[str, dict[str, Any]] = {
    "lite-like": tiny_config(),
    "query compression": tiny_config(q_lora_rank=24),
    "group-limited, as in the 236B": tiny_config(
        q_lora_rank=24,
        n_routed_experts=16,
        n_group=8,
        topk_group=3,
        num_experts_per_tok=6,
        topk_method="group_limited_greedy",
        routed_scaling_factor=16.0,
    ),
    "no YaRN": tiny_config(rope_scaling=None),
    "mscale other than mscale_all_dim": tiny_config(rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 0.4}),
    "no dense layer": tiny_config(first_k_dense_replace=0),
    "two dense layers": tiny_config(first_k_dense_replace=2, num_hidden_layers=4),
    "dense layers only": tiny_config(first_k_dense_replace=2, num_hidden_layers=2),
    "sizes that are no powers of two": tiny_config(
        hidden_size=111,
        intermediate_size=77,
        moe_intermediate_size=19,
        num_attention_heads=3,
        kv_lora_rank=30,  # even, as the key widths: transformers views rows as complex numbers
        qk_nope_head_dim=14,
        qk_rope_head_dim=6,
        v_head_dim=11,
        n_routed_experts=7,
        num_experts_per_tok=2,
        n_shared_experts=3,
        vocab_size=289,
    ),
    "values wider than keys": tiny_config(v_head_dim=40),
    "one head, one expert a token": tiny_config(num_attention_heads=1, num_experts_per_tok=1, n_shared_experts=1),
    "another frequency base and extension": tiny_config(
        rope_theta=50000.0,
        qk_rope_head_dim=16,
        rope_scaling=YARN | {"factor": 8.0, "beta_fast": 16, "original_max_position_embeddings": 64},
    ),
}

Pair = tuple[Transformer, Oracle]
MakePair = Callable[[str], Pair]


@pytest.fixture(scope="module")
def make_pair(tmp_path_factory: pytest.TempPathFactory) -> MakePair:
    """The network of a shape, ours and transformers', from one folder."""
    made: dict[str, Pair] = {}

    def make(shape: str) -> Pair:
        if shape not in made:
            folder = write_checkpoint(tmp_path_factory.mktemp("model"), SHAPES[shape], seed=1, tokenizer=False)
            made[shape] = load_model(folder), Oracle(folder)
        return made[shape]

    return make


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logprobs_of_all_positions_are_those_of_transformers(make_pair: MakePair, shape: str, form: Form) -> None:
    model, oracle = make_pair(shape)
    ids = random_ids(96, model.config.vocab_size)

    expected = oracle.logprobs(ids)

    assert expected.std(-1).min() >= 1, "flat log-probabilities would hide any mistake"
    assert oracle.routing_gap(ids) > ROUTING_GAP
    assert (read_once(model, ids, form) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", ["lite-like", "group-limited, as in the 236B", "no YaRN"])
def test_what_transformers_saves_today_is_read_and_has_its_logprobs(
    make_pair: MakePair, tmp_path: Path, shape: str
) -> None:
    model, oracle = make_pair(shape)
    ids = random_ids(48, model.config.vocab_size)

    saved = oracle.save(tmp_path / "saved")

    assert "rope_parameters" in json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert (read_once(load_model(saved), ids) - oracle.logprobs(ids)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_64_greedy_tokens_are_those_of_transformers(make_pair: MakePair, shape: str) -> None:
    model, oracle = make_pair(shape)
    prompt = random_ids(12, model.config.vocab_size, seed=2)

    expected = oracle.greedy(prompt, 64)

    assert greedy(model, prompt, 64) == expected


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_logprobs_beyond_position_4096_are_those_of_transformers(tmp_path: Path, form: Form) -> None:
    config = tiny_config(num_hidden_layers=2, num_attention_heads=2, n_routed_experts=4, num_experts_per_tok=2)
    folder = write_checkpoint(tmp_path, config, seed=1, tokenizer=False)
    model, oracle = load_model(folder), Oracle(folder)
    ids = random_ids(4300, config["vocab_size"], seed=2)

    expected = oracle.logprobs(ids)

    assert oracle.routing_gap(ids) > ROUTING_GAP
    differences = (read_once(model, ids, form) - expected).abs().amax(-1)
    assert differences[:4096].max() <= TOLERANCE
    assert differences[4096:].max() <= FAR_TOLERANCE


def test_softmax_scale_of_lite_is_0_11472_here_and_in_transformers(tmp_path: Path) -> None:
    lite = json.loads((GOLDEN / "deepseek-v2-lite.config.json").read_text(encoding="utf-8"))
    # The scale depends on none of the sizes that are cut here.
    small = dict(hidden_size=16, intermediate_size=8, moe_intermediate_size=8, vocab_size=16, num_hidden_layers=1)
    folder = write_checkpoint(tmp_path, lite | small, tokenizer=False)

    assert ModelConfig.from_dict(lite).softmax_scale == pytest.approx(0.11472, abs=5e-6)
    assert Oracle(folder).softmax_scales == [pytest.approx(0.11472, abs=5e-6)]
    assert ModelConfig.from_dict(lite).softmax_scale == pytest.approx(Oracle(folder).softmax_scales[0], rel=1e-9)


def test_a_layer_without_shared_experts_adds_the_routed_ones_alone(tmp_path: Path) -> None:
    """transformers cannot express it, so shared experts whose output is zero stand in for none."""
    none, zero = tiny_config(n_shared_experts=0), tiny_config(n_shared_experts=1)
    folder = write_checkpoint(tmp_path / "none", none, tokenizer=False)
    model = load_model(folder)
    shared = {
        f"model.layers.{layer}.mlp.shared_experts.{name}.weight": torch.zeros(shape)
        for layer in (1, 2)
        for name, shape in {"gate_proj": (32, 96), "up_proj": (32, 96), "down_proj": (96, 32)}.items()
    }
    checkpoint = Checkpoint.open(folder)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.entries} | shared
    oracle = Oracle(write_checkpoint(tmp_path / "zero", zero, tensors=tensors, tokenizer=False))
    ids = random_ids(64, none["vocab_size"])

    assert oracle.routing_gap(ids) > ROUTING_GAP
    assert (read_once(model, ids) - oracle.logprobs(ids)).abs().max() <= TOLERANCE
