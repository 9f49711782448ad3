"""Names and shapes of every tensor of a checkpoint, from its config alone.

The only such list: checks, byte counts, placement and random weights all use it.
"""

from dslite.model.config import ModelConfig

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Hub name → shape of all parameters, in the order of the forward pass."""
    vocab, hidden = config.vocab_size, config.hidden_size
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes |= layer_shapes(config, layer)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def layer_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """The parameters of one decoder layer."""
    hidden = config.hidden_size
    prefix = f"model.layers.{layer}."
    shapes: dict[str, Shape] = {f"{prefix}input_layernorm.weight": (hidden,)}
    shapes |= {f"{prefix}self_attn.{name}.weight": shape for name, shape in _attention_shapes(config).items()}
    shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    if not config.is_moe(layer):
        return shapes | _mlp_shapes(f"{prefix}mlp.", hidden, config.intermediate_size)
    shapes[f"{prefix}mlp.gate.weight"] = (config.n_routed_experts, hidden)
    if config.n_shared_experts:
        width = config.moe_intermediate_size * config.n_shared_experts
        shapes |= _mlp_shapes(f"{prefix}mlp.shared_experts.", hidden, width)
    for expert in range(config.n_routed_experts):
        shapes |= _mlp_shapes(f"{prefix}mlp.experts.{expert}.", hidden, config.moe_intermediate_size)
    return shapes


def _attention_shapes(config: ModelConfig) -> dict[str, Shape]:
    hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    shapes: dict[str, Shape] = {}
    if config.q_lora_rank is None:
        shapes["q_proj"] = (heads * config.qk_head_dim, hidden)
    else:
        shapes["q_a_proj"] = (config.q_lora_rank, hidden)
        shapes["q_a_layernorm"] = (config.q_lora_rank,)
        shapes["q_b_proj"] = (heads * config.qk_head_dim, config.q_lora_rank)
    shapes["kv_a_proj_with_mqa"] = (config.latent_width, hidden)
    shapes["kv_a_layernorm"] = (rank,)
    shapes["kv_b_proj"] = (heads * (config.qk_nope_head_dim + config.v_head_dim), rank)
    shapes["o_proj"] = (hidden, heads * config.v_head_dim)
    return shapes


def _mlp_shapes(prefix: str, hidden: int, width: int) -> dict[str, Shape]:
    return {
        f"{prefix}gate_proj.weight": (width, hidden),
        f"{prefix}up_proj.weight": (width, hidden),
        f"{prefix}down_proj.weight": (hidden, width),
    }
