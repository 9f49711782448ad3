"""The configuration of a DeepSeek-V2 network, as config.json gives it.

Hub parameter names are kept. A key that asks for something not implemented is refused by name: a model that ignored it
would answer, but wrongly.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dslite.model.errors import ConfigError

# Keys that cannot change what inference computes.
_WITHOUT_EFFECT = frozenset(
    "architectures auto_map _name_or_path transformers_version torch_dtype dtype use_cache initializer_range "
    "attention_dropout aux_loss_alpha seq_aux pad_token_id ep_size output_attentions output_hidden_states "
    "return_dict pretraining_tp output_router_logits".split()
)
# Keys with one implemented value: any other is refused.
_ONLY_VALUE: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v2",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "norm_topk_prob": (False, None),
    "scoring_func": ("softmax",),
    "tie_word_embeddings": (False,),
    "quantization_config": (None,),
    "topk_method": ("greedy", "group_limited_greedy"),
}
_SIZES = (
    "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads "
    "n_routed_experts num_experts_per_tok kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim "
    "max_position_embeddings"
).split()
_OTHERS = frozenset(
    "n_shared_experts first_k_dense_replace n_group topk_group topk_method q_lora_rank rms_norm_eps rope_theta "
    "rope_scaling rope_parameters routed_scaling_factor bos_token_id eos_token_id num_key_value_heads head_dim "
    "qk_head_dim".split()
)
_YARN_KEYS = frozenset(
    "type rope_type rope_theta factor beta_fast beta_slow mscale mscale_all_dim "
    "original_max_position_embeddings".split()
)
# Keys of rotation that transformers may write, with the values that change nothing.
_ROPE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncate": (True, None),
    "attention_factor": (None,),
    "partial_rotary_factor": (1.0, None),
}

_MOST_EXPERTS = 10**6  # 100 times the largest of the family: a damaged number must not fill the memory


@dataclass(frozen=True)
class YarnConfig:
    """YaRN context extension (arXiv 2309.00071) as DeepSeek-V2 uses it."""

    factor: float
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    original_max_position_embeddings: int

    @staticmethod
    def magnitude(factor: float, mscale: float) -> float:
        """m(k) = 0.1·k·ln(factor) + 1; 1 where the context is not extended."""
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclass(frozen=True)
class ModelConfig:
    """A network of the family. Sizes are counts of values, not bytes."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    first_k_dense_replace: int
    topk_method: str
    n_group: int
    topk_group: int
    routed_scaling_factor: float
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: YarnConfig | None
    max_position_embeddings: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]

    @property
    def latent_width(self) -> int:
        """Values that the cache keeps for a token and a layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def softmax_scale(self) -> float:
        """1/√(query width), times m(mscale_all_dim)² under YaRN: 0.11472 for Lite."""
        scale: float = self.qk_head_dim**-0.5
        if self.rope_scaling is not None:
            scale *= YarnConfig.magnitude(self.rope_scaling.factor, self.rope_scaling.mscale_all_dim) ** 2
        return scale

    def is_moe(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace

    @classmethod
    def from_dict(cls, raw: object) -> "ModelConfig":
        """Parse config.json's object. Raises ConfigError naming the key at fault."""
        if not isinstance(raw, Mapping):
            raise ConfigError(f"config.json is not a JSON object but {_kind(raw)}", "use the model's own config.json")
        _check_model_type(raw)
        _refuse_unimplemented(raw)
        sizes = {key: _integer(raw, key, minimum=1) for key in _SIZES}
        rope_theta, rope_scaling = _rope(raw)
        config = cls(
            **sizes,
            n_shared_experts=_integer(raw, "n_shared_experts") if raw.get("n_shared_experts") is not None else 0,
            first_k_dense_replace=_integer(raw, "first_k_dense_replace"),
            topk_method=_required(raw, "topk_method"),
            n_group=_integer(raw, "n_group", minimum=1) if raw.get("n_group") is not None else 1,
            topk_group=_integer(raw, "topk_group", minimum=1) if raw.get("topk_group") is not None else 1,
            routed_scaling_factor=_number(raw, "routed_scaling_factor"),
            q_lora_rank=None if raw.get("q_lora_rank") is None else _integer(raw, "q_lora_rank", minimum=1),
            rms_norm_eps=_number(raw, "rms_norm_eps"),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            bos_token_id=_integer(raw, "bos_token_id"),
            eos_token_ids=_token_ids(raw, "eos_token_id"),
        )
        _check_consistency(config, raw)
        return config


def _check_model_type(raw: Mapping[str, Any]) -> None:
    """First of all checks: every other key of another family means something else."""
    if raw.get("model_type") != "deepseek_v2":
        raise ConfigError(
            f"config.json: model_type is {raw.get('model_type')!r}, and dslite runs deepseek_v2 only",
            "choose a DeepSeek-V2 model, such as deepseek-ai/DeepSeek-V2-Lite-Chat",
        )


def _refuse_unimplemented(raw: Mapping[str, Any]) -> None:
    known = _WITHOUT_EFFECT | _ONLY_VALUE.keys() | _OTHERS | set(_SIZES)
    for key, value in raw.items():
        if key not in known and value is not None:
            raise ConfigError(
                f"config.json: the key {key!r} is not implemented",
                "use a checkpoint of the published DeepSeek-V2 form",
            )
    for key, values in _ONLY_VALUE.items():
        if key in raw and raw[key] not in values:
            wanted = " or ".join(repr(value) for value in values)
            raise ConfigError(
                f"config.json: {key} is {raw[key]!r}, and only {wanted} is implemented",
                "use a checkpoint of the published DeepSeek-V2 form",
            )


def _check_consistency(config: ModelConfig, raw: Mapping[str, Any]) -> None:
    if config.num_hidden_layers * config.n_routed_experts > _MOST_EXPERTS:
        raise _wrong("num_hidden_layers", config.num_hidden_layers, "such that there are not millions of experts")
    heads = raw.get("num_key_value_heads")
    if heads is not None and heads != config.num_attention_heads:
        raise _wrong("num_key_value_heads", heads, "equal to num_attention_heads: latent attention shares nothing else")
    if raw.get("head_dim") not in (None, config.qk_rope_head_dim):
        raise _wrong("head_dim", raw["head_dim"], "absent or equal to qk_rope_head_dim")
    if raw.get("qk_head_dim") not in (None, config.qk_head_dim):
        raise _wrong("qk_head_dim", raw["qk_head_dim"], "absent or the sum of qk_nope_head_dim and qk_rope_head_dim")
    if config.qk_rope_head_dim % 2:
        raise _wrong("qk_rope_head_dim", config.qk_rope_head_dim, "even: rotation acts on pairs")
    if config.rope_theta <= 1:
        raise _wrong("rope_theta", config.rope_theta, "above 1: pairs turn slower and slower")
    if config.num_experts_per_tok > config.n_routed_experts:
        raise _wrong("num_experts_per_tok", config.num_experts_per_tok, "at most n_routed_experts")
    if config.first_k_dense_replace > config.num_hidden_layers:
        raise _wrong("first_k_dense_replace", config.first_k_dense_replace, "at most num_hidden_layers")
    if config.topk_method == "group_limited_greedy":
        if config.n_routed_experts % config.n_group:
            raise _wrong("n_group", config.n_group, "a divisor of n_routed_experts")
        if config.topk_group > config.n_group:
            raise _wrong("topk_group", config.topk_group, "at most n_group")
        if config.topk_group * config.n_routed_experts // config.n_group < config.num_experts_per_tok:
            raise _wrong("topk_group", config.topk_group, "large enough for num_experts_per_tok")


def _rope(raw: Mapping[str, Any]) -> tuple[float, YarnConfig | None]:
    """The base of the rotation's frequencies, and how YaRN changes them.

    Published files have rope_theta beside rope_scaling; transformers 5 writes one object, rope_parameters.
    """
    given = [place for place in ("rope_scaling", "rope_parameters") if raw.get(place) is not None]
    if len(given) == 2:
        raise ConfigError(
            "config.json has both rope_scaling and rope_parameters", "keep the one that the model was trained with"
        )
    if not given:
        return _number(raw, "rope_theta"), None
    place = given[0]
    rope, prefix = raw[place], f"{place}."
    if not isinstance(rope, Mapping):
        raise _wrong(place, rope, "an object or null")
    if raw.get("rope_theta") is None and "rope_theta" in rope:
        return _number(rope, "rope_theta", prefix), _yarn(rope, prefix)
    theta = _number(raw, "rope_theta")
    if rope.get("rope_theta", theta) != theta:
        raise _wrong(f"{prefix}rope_theta", rope["rope_theta"], f"rope_theta, {theta:g}")
    return theta, _yarn(rope, prefix)


def _yarn(rope: Mapping[str, Any], prefix: str) -> YarnConfig | None:
    """YaRN's numbers; None where the context is not extended. The defaults are those of the Hub's code."""
    for kind in [rope[key] for key in ("type", "rope_type") if key in rope] or [None]:
        if kind not in ("yarn", "default"):
            raise ConfigError(
                f"config.json: {prefix}type is {kind!r}, and only 'yarn' is implemented",
                "use a checkpoint of the published DeepSeek-V2 form",
            )
        if kind == "default":
            return None
    for key, value in rope.items():
        if key not in _YARN_KEYS and value not in _ROPE_NEUTRAL.get(key, (None,)):
            raise ConfigError(f"config.json: the key '{prefix}{key}' is not implemented")

    def number(key: str, default: float) -> float:
        return default if rope.get(key) is None else _number(rope, key, prefix)

    return YarnConfig(
        factor=_number(rope, "factor", prefix),
        beta_fast=number("beta_fast", 32),
        beta_slow=number("beta_slow", 1),
        mscale=number("mscale", 1),
        mscale_all_dim=0 if rope.get("mscale_all_dim") == 0 else number("mscale_all_dim", 0),
        original_max_position_embeddings=_integer(rope, "original_max_position_embeddings", minimum=1, prefix=prefix),
    )


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _wrong(key: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"config.json: {key} is {value!r}; it must be {wanted}", "use the model's own config.json")


def _required(raw: Mapping[str, Any], key: str, prefix: str = "") -> Any:
    if key not in raw:
        raise ConfigError(f"config.json: the key '{prefix}{key}' is missing", "use the model's own config.json")
    return raw[key]


def _integer(raw: Mapping[str, Any], key: str, *, minimum: int = 0, prefix: str = "") -> int:
    value = _required(raw, key, prefix)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise _wrong(prefix + key, value, f"an integer of at least {minimum}")
    return value


def _number(raw: Mapping[str, Any], key: str, prefix: str = "") -> float:
    value = _required(raw, key, prefix)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise _wrong(prefix + key, value, "a positive number")
    return float(value)


def _token_ids(raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = _required(raw, key)
    ids = value if isinstance(value, list) else [value]
    if not ids or any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in ids):
        raise _wrong(key, value, "a token id or a list of them")
    return tuple(ids)
