"""The bytes of a network by part: arithmetic on its config alone, without torch or files."""

import math
from dataclasses import dataclass
from functools import lru_cache

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.quantized_layout import WeightFormat, Weights, mlp_bytes
from dslite.model.quantized_layout import expert_bytes as quantized_expert_bytes
from dslite.runtime.weights import packed_layout

ITEM_BYTES = {"bfloat16": 2, "float32": 4}
LOGIT_ROWS = 64  # prompt positions scored at once: 64 × 102,400 × 4 bytes

_EMBEDDING = "model.embed_tokens.weight"
_ROUTED = ".mlp.experts."
_EXTENTS = 3  # gate, up and down of an expert may be in three places of a file
_ALLOCATED = 512  # bytes that an allocation on a GPU takes at least
_MASK_ROWS = 512  # query rows that attention masks at a time


def expert_bytes(config: ModelConfig, item: int) -> int:
    """One routed expert, gate, up and down, in values of `item` bytes: 16.5 MiB in Lite."""
    return 3 * config.hidden_size * config.moe_intermediate_size * item


def routed_format(weights: Weights) -> WeightFormat | None:
    """The format of the routed experts; None: as published."""
    return None if weights == "bfloat16" else weights


def latent_bytes(config: ModelConfig, item: int) -> int:
    """The latent cache entries of one token in all layers: 31,104 for Lite in BF16."""
    return config.num_hidden_layers * config.latent_width * item


def growth_bytes(config: ModelConfig, context: int, item: int) -> int:
    """What a latent cache that grows takes beyond its size: it moves layer by layer, so one layer exists twice."""
    return context * config.latent_width * item


@dataclass(frozen=True)
class Footprint:
    """The bytes of a network in a dtype (a key of ITEM_BYTES), its products quantized or not."""

    config: ModelConfig
    dtype: str
    format: Weights = "bfloat16"  # of the weights

    @property
    def item(self) -> int:
        """Bytes of one value."""
        return ITEM_BYTES[self.dtype]

    @property
    def parameters(self) -> int:
        return _parameters(self.config)

    @property
    def weights(self) -> int:
        return packed_layout.weights_bytes(self.config, self.format, self.item)

    @property
    def moe_layers(self) -> int:
        return max(self.config.num_hidden_layers - self.config.first_k_dense_replace, 0)

    @property
    def expert(self) -> int:
        """One routed expert: gate, up and down. 16.5 MiB in Lite, 8.8 in int8, 4.6 in int4."""
        format = routed_format(self.format)
        return expert_bytes(self.config, self.item) if format is None else quantized_expert_bytes(self.config, format)

    @property
    def routed(self) -> int:
        """All routed experts of all layers."""
        return self.expert * self.config.n_routed_experts * self.moe_layers

    @property
    def embedding(self) -> int:
        return self.config.vocab_size * self.config.hidden_size * self.item

    @property
    def always(self) -> int:
        """Weights that every token reads whole: all but routed experts and embedding."""
        return self.weights - self.routed - self.embedding

    @property
    def read_per_token(self) -> int:
        """Weights that one token reads: its row of the embedding and its experts among them."""
        return self.always + self.routed_per_token + self.config.hidden_size * self.item

    @property
    def routed_per_token(self) -> int:
        return self.expert * self.config.num_experts_per_tok * self.moe_layers

    @property
    def shared_per_layer(self) -> int:
        """The shared experts of one layer."""
        config = self.config
        width = config.moe_intermediate_size * config.n_shared_experts
        if self.format == "bfloat16":
            return 3 * config.hidden_size * width * self.item
        return mlp_bytes(config.hidden_size, width, "int8")

    @property
    def kv_per_token(self) -> int:
        """Cache of one token: latent and rotary key of each layer."""
        return latent_bytes(self.config, self.item)

    @property
    def direct_slot(self) -> int:
        """A slot that unbuffered reads fill: whole pages, and room for an extent that begins or ends inside one."""
        pages = packed_layout.whole_pages(self.expert)
        return pages + (_EXTENTS * 2 * packed_layout.PAGE if self.format == "bfloat16" else 0)

    def gpu_workspace(self, chunk: int, context: int) -> int:
        """workspace() on a GPU, whose kernels of attention have no mask in memory and share what torch's CPU ones copy.

        To the byte of what is allocated where attention or the dense MLP takes the most, as in Lite.
        """
        config, item = self.config, self.item
        chunk = min(chunk, context)
        heads, width, chosen = config.num_attention_heads, config.moe_intermediate_size, config.num_experts_per_tok
        states = chunk * config.hidden_size * item  # hidden states of the chunk
        keys = context * heads * (config.qk_nope_head_dim + config.v_head_dim + 2 * config.qk_head_dim) * item
        queries = chunk * heads * config.qk_head_dim * item  # and as much for the values
        sums = chunk * heads * 4 + 2 * _ALLOCATED  # of exponentials, and two numbers of the kernel
        attention = keys + 2 * queries + 2 * states + chunk * config.latent_width * item + sums
        mlp = 5 * states + 3 * chunk * max(config.intermediate_size, width * config.n_shared_experts) * item
        rows = chunk * chosen * (2 * config.hidden_size + 3 * width) * item
        routed = 5 * states + rows + 2 * chunk * config.hidden_size * 4
        logits = states + min(chunk, LOGIT_ROWS) * config.vocab_size * (item + 3 * 4)
        positions = chunk * (8 + config.qk_rope_head_dim * 4)  # and their rotations
        return positions + max(attention, mlp, routed, logits)

    def workspace(self, chunk: int, context: int) -> int:
        """Most bytes of intermediate values at once while `chunk` tokens are read at the end of `context`.

        The phases of a layer do not overlap: attention, the widest MLP, the routed experts, then the logits.
        """
        config, item = self.config, self.item
        chunk = min(chunk, context)
        heads, hidden = config.num_attention_heads, config.hidden_size
        key_rows = context * heads * (config.qk_nope_head_dim + config.v_head_dim + 2 * config.qk_head_dim) * item
        masks = min(chunk, _MASK_ROWS) * context * (1 + item)
        attention = key_rows + masks + 4 * chunk * heads * config.qk_head_dim * item
        shared = config.moe_intermediate_size * config.n_shared_experts
        mlp = 3 * chunk * max(config.intermediate_size, shared, config.moe_intermediate_size) * item
        routed = chunk * (config.num_experts_per_tok + 1) * hidden * item + 2 * chunk * hidden * 4
        logits = min(chunk, LOGIT_ROWS) * config.vocab_size * (item + 3 * 4)
        residuals = 4 * chunk * hidden * item + 2 * chunk * hidden * 4
        return residuals + max(attention, mlp, routed, logits)


@lru_cache(maxsize=8)
def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def is_routed(name: str) -> bool:
    """Whether a parameter's Hub name is a routed expert's."""
    return _ROUTED in name


def is_embedding(name: str) -> bool:
    return name == _EMBEDDING
