"""The kernels that a step launches on a GPU where all weights are resident, for one sequence or for sixteen.

tests/gpu compares it with a profile.

A layer: input norm with q_proj and kv_a_proj; rotation, absorbed query and latent entry; attention's splits; their
merging with W_UV; o_proj with the residual; post norm with the router; gate and up with the top-k; down with the
residual.
"""

from dslite.model.config import ModelConfig

LAYER = 8
_EMBEDDING = 1  # with the rotation
_END = 2  # copy of the hidden state, norm with lm_head
EAGER_LAYER = 60  # about so many of torch's kernels a layer


def per_token(config: ModelConfig) -> int:
    """218 for Lite: seven in the dense layer, which has no router, eight in every other."""
    dense = sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers))
    compressed = 0 if config.q_lora_rank is None else config.num_hidden_layers  # q_b_proj behind its norm
    return config.num_hidden_layers * LAYER - dense + compressed + _EMBEDDING + _END
