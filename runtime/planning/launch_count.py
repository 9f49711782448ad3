"""How many kernels one token launches on a GPU, where all that it reads lies there. Tests hold the count to what runs.

A layer: input norm with q_proj and kv_a_proj; rotation, absorbed query and cache row; attention's splits; their merging
with W_UV; o_proj with the residual; post norm with the router; gate and up with the choice; down with the residual.
"""

from dslite.model.config import ModelConfig

LAYER = 8
_EMBEDDING = 6  # the token's row, and five of torch's for its rotation
_END = 2  # hidden states handed out, norm with lm_head
EAGER_LAYER = 60  # torch's kernels, one by one: about so many a layer


def per_token(config: ModelConfig) -> int:
    """223 for Lite: seven in the dense layer, which has no router, eight in every other."""
    dense = sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers))
    compressed = 0 if config.q_lora_rank is None else config.num_hidden_layers  # q_b_proj behind its norm
    return config.num_hidden_layers * LAYER - dense + compressed + _EMBEDDING + _END
