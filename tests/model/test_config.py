"""config.json: what published models say is understood, and what is not implemented is refused by name."""

import copy
import json
import math
import re
from typing import Any

import pytest
import torch
from support.checkpoints import YARN, tiny_config
from support.memory import anonymous_bytes
from support.reference import golden, reference_file
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.errors import ConfigError
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import kv_bytes_per_token


def lite() -> ModelConfig:
    return ModelConfig.from_dict(golden("deepseek-v2-lite.config.json"))


def total_bytes(config: ModelConfig) -> int:
    return sum(2 * math.prod(shape) for shape in parameter_shapes(config).values())


def test_lite_has_5291_tensors_of_31_412_968_448_bytes() -> None:
    assert len(parameter_shapes(lite())) == 5291
    assert total_bytes(lite()) == 31_412_968_448


def test_lite_has_the_published_tensor_names_and_shapes() -> None:
    published = json.loads(reference_file("tensors.json").read_text(encoding="utf-8"))

    shapes = {name: list(shape) for name, shape in parameter_shapes(lite()).items()}

    assert shapes == {name: entry["shape"] for name, entry in published.items()}


def test_lite_caches_576_values_and_31104_bytes_per_token() -> None:
    assert lite().latent_width == 576
    assert kv_bytes_per_token(lite()) == 31_104


def test_the_236b_model_builds_on_the_meta_device_without_memory() -> None:
    config = ModelConfig.from_dict(golden("deepseek-v2.config.json"))
    shapes = parameter_shapes(config)
    taken: dict[str, Tensor] = {}
    before = anonymous_bytes()

    def take(name: str) -> Tensor:
        taken[name] = torch.empty(shapes[name], dtype=torch.bfloat16, device="meta")
        return taken[name]

    model = Transformer.build(config, take)

    assert sum(tensor.nbytes for tensor in taken.values()) == total_bytes(config) == 471_482_869_760
    assert taken.keys() == shapes.keys()
    assert model.device.type == "meta"
    assert len(model.layers) == 60
    assert anonymous_bytes() - before < 256 * 2**20  # of 29,000 small objects


def test_keys_without_effect_on_inference_are_accepted() -> None:
    raw = tiny_config(aux_loss_alpha=0.001, seq_aux=True, auto_map={"AutoModel": "x.Y"}, use_cache=True, ep_size=1)

    assert ModelConfig.from_dict(raw) == ModelConfig.from_dict(tiny_config())


def test_a_list_of_end_tokens_is_accepted() -> None:
    assert ModelConfig.from_dict(tiny_config(eos_token_id=[1, 2])).eos_token_ids == (1, 2)


NOT_IMPLEMENTED: dict[str, Any] = {
    "norm_topk_prob": True,
    "moe_layer_freq": 2,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "num_key_value_heads": 2,
    "head_dim": 64,
    "quantization_config": {"quant_method": "fp8"},
    "sliding_window": 4096,
    "model_type": "deepseek_v3",
}


@pytest.mark.parametrize("key", NOT_IMPLEMENTED)
def test_what_is_not_implemented_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        ModelConfig.from_dict(tiny_config(**{key: NOT_IMPLEMENTED[key]}))
    assert caught.value.remedy


@pytest.mark.parametrize("changes", [{"type": "linear"}, {"type": ...}, {"type": "yarn", "rope_type": "linear"}])
def test_another_kind_of_rope_scaling_is_refused_by_name(changes: dict[str, Any]) -> None:
    scaling = {key: value for key, value in (YARN | changes).items() if value is not ...}

    with pytest.raises(ConfigError, match="rope_scaling"):
        ModelConfig.from_dict(tiny_config(rope_scaling=scaling))


def test_an_unknown_key_of_rope_scaling_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"rope_scaling\.attention_factor"):
        ModelConfig.from_dict(tiny_config(rope_scaling=YARN | {"attention_factor": 2.0}))


REQUIRED = (
    "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads "
    "n_routed_experts num_experts_per_tok first_k_dense_replace topk_method routed_scaling_factor kv_lora_rank "
    "qk_nope_head_dim qk_rope_head_dim v_head_dim rms_norm_eps rope_theta max_position_embeddings bos_token_id "
    "eos_token_id model_type"
).split()


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig.from_dict(tiny_config(**{key: ...}))


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings"])
def test_a_missing_key_of_rope_scaling_is_named(key: str) -> None:
    scaling = {name: value for name, value in YARN.items() if name != key}

    with pytest.raises(ConfigError, match=rf"rope_scaling\.{key}"):
        ModelConfig.from_dict(tiny_config(rope_scaling=scaling))


YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}


@pytest.mark.parametrize("absent", [..., None])
def test_keys_of_rope_scaling_that_may_be_absent_have_the_defaults_of_the_hubs_code(absent: Any) -> None:
    given = {key: value for key, value in YARN.items() if key not in YARN_DEFAULTS}
    scaling = given | ({} if absent is ... else dict.fromkeys(YARN_DEFAULTS))

    config = ModelConfig.from_dict(tiny_config(rope_scaling=scaling))

    assert {key: getattr(config.rope_scaling, key) for key in YARN_DEFAULTS} == YARN_DEFAULTS


@pytest.mark.parametrize(
    "extra",
    [
        {"quantization_config": None},
        {"a_key_of_tomorrow": None},
        {"output_router_logits": False},
        {"qk_head_dim": 24},
        {"rope_scaling": YARN | {"truncate": True, "attention_factor": None, "partial_rotary_factor": 1.0}},
        {
            "rope_scaling": ...,
            "rope_theta": ...,
            "rope_parameters": YARN | {"rope_type": "yarn", "rope_theta": 10000.0},
        },
        {"rope_scaling": None, "rope_parameters": YARN | {"rope_theta": 10000}},
    ],
)
def test_keys_that_change_nothing_are_accepted(extra: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(tiny_config(**extra)) == ModelConfig.from_dict(tiny_config())


def test_the_default_rotation_means_that_the_context_is_not_extended() -> None:
    plain = ModelConfig.from_dict(tiny_config(rope_scaling=None))

    for rope in ({"rope_type": "default", "rope_theta": 10000.0}, {"type": "default"}):
        assert ModelConfig.from_dict(tiny_config(rope_scaling=None, rope_parameters=rope)) == plain


@pytest.mark.parametrize(
    ("key", "extra"),
    [
        ("rope_parameters", {"rope_parameters": YARN}),
        ("rope_parameters.rope_theta", {"rope_scaling": None, "rope_parameters": YARN | {"rope_theta": 5e5}}),
        ("rope_theta", {"rope_scaling": None, "rope_theta": ..., "rope_parameters": YARN}),
        ("rope_parameters", {"rope_scaling": None, "rope_parameters": [YARN]}),
        ("rope_scaling.truncate", {"rope_scaling": YARN | {"truncate": False}}),
        ("qk_head_dim", {"qk_head_dim": 25}),
        ("output_router", {"output_router": False}),
    ],
)
def test_keys_of_rotation_that_disagree_or_change_something_are_refused_by_name(
    key: str, extra: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=re.escape(key)):
        ModelConfig.from_dict(tiny_config(**extra))


NEVER_RIGHT: list[Any] = [None, True, "8", -1, {}, math.nan, math.inf]
FRACTIONS = {"routed_scaling_factor", "rms_norm_eps", "rope_theta"}


def wrong_values(key: str) -> list[Any]:
    """Values that a key can never have; 10^400 is no float."""
    if key in FRACTIONS or (key in YARN and key != "original_max_position_embeddings"):
        return [*NEVER_RIGHT, [8], 0, 10**400]
    return [*NEVER_RIGHT, 1.5, [8, None]] if key == "eos_token_id" else [*NEVER_RIGHT, 1.5, [8]]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_value_of_the_wrong_kind_is_refused_by_the_name_of_its_key(key: str) -> None:
    for value in wrong_values(key):
        with pytest.raises(ConfigError, match=key):
            ModelConfig.from_dict(tiny_config(**{key: value}))


@pytest.mark.parametrize("key", [key for key in YARN if key != "type"])
def test_a_value_of_the_wrong_kind_in_rope_scaling_is_refused_by_name(key: str) -> None:
    values = [value for value in wrong_values(key) if not (value is None and key in YARN_DEFAULTS)]
    for value in values if key != "mscale_all_dim" else [value for value in values if value != 0]:
        with pytest.raises(ConfigError, match=rf"rope_scaling\.{key}"):
            ModelConfig.from_dict(tiny_config(rope_scaling=YARN | {key: value}))


INCONSISTENT: dict[str, dict[str, Any]] = {
    "qk_rope_head_dim": {"qk_rope_head_dim": 7},
    "num_experts_per_tok": {"num_experts_per_tok": 9},
    "first_k_dense_replace": {"first_k_dense_replace": 4},
    "n_group": {"topk_method": "group_limited_greedy", "n_group": 3},
    "topk_group": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 5},
    "too few groups: topk_group": {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 2},
    "rope_theta": {"rope_theta": 1.0},
}


@pytest.mark.parametrize("key", INCONSISTENT)
def test_values_that_contradict_each_other_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key.split()[-1]):
        ModelConfig.from_dict(tiny_config(**INCONSISTENT[key]))


@pytest.mark.parametrize("raw", [None, [], "deepseek_v2", 3, True])
def test_a_config_that_is_no_object_is_refused(raw: object) -> None:
    with pytest.raises(ConfigError, match="not a JSON object"):
        ModelConfig.from_dict(raw)


def test_parsing_leaves_the_raw_object_as_it_was() -> None:
    raw = tiny_config()
    before = copy.deepcopy(raw)

    ModelConfig.from_dict(raw)

    assert raw == before


def test_a_damaged_number_of_layers_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(ConfigError, match="num_hidden_layers is 1000000000"):
        ModelConfig.from_dict(tiny_config(num_hidden_layers=10**9))
