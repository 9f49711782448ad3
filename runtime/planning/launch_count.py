"""The kernels that a step launches on a GPU where all weights are resident, for one sequence or for sixteen.

tests/gpu compares it with a profile.

A layer: input norm with q_proj and kv_a_proj; rotation, absorbed query and latent entry; attention's splits; their
merging with W_UV; o_proj with the residual; post norm with the router; gate and up with the top-k; down with the
residual.
"""

from dslite.model.config import ModelConfig

LAYER = 8
# Where routed experts are in slots: the choice of experts and their sum are kernels of their own, and ids are copied.
SLOT_LAYER = 11
HOST_MISSES = 2  # copies: the hidden state to the host, the outputs back
FETCHED_MISSES = 4  # the addresses of the fetched experts, two kernels, and the table with their slots
_EMBEDDING = 1  # with the rotation
_END = 2  # copy of the hidden state, norm with lm_head
EAGER_LAYER = 60  # about so many of torch's kernels a layer


def per_token(config: ModelConfig, *, slots: bool = False, computed: bool = False, fetched: bool = False) -> int:
    """218 for Lite: seven in the dense layer, which has no router, eight in every other.

    With experts in `slots` small copies between device and host count too; `computed` and `fetched` say what becomes of
    misses, which are assumed in every layer.
    """
    if slots:
        more = SLOT_LAYER - LAYER + HOST_MISSES * computed + FETCHED_MISSES * fetched
        moe_layers = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
        return per_token(config) + moe_layers * more
    dense = sum(not config.is_moe(layer) for layer in range(config.num_hidden_layers))
    compressed = 0 if config.q_lora_rank is None else config.num_hidden_layers  # q_b_proj behind its norm
    return config.num_hidden_layers * LAYER - dense + compressed + _EMBEDDING + _END
