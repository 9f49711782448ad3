"""The tensors of a network, as the forward passes read them."""

# D hidden  P = R/2 pairs that rotate together

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dslite.model import kernels
from dslite.model.attention import rms_norm
from dslite.model.config import ModelConfig
from dslite.model.decoder_layer import DecoderLayer, MakeBank, TakeTensor, build_layer, resident_experts
from dslite.model.quantized import Weight, plain
from dslite.model.rope import amplitude, inverse_frequencies


@dataclass(frozen=True)
class Network:
    """Embedding (vocabulary, D), decoder layers, final norm (D,), output head (vocabulary, D), rotation (P,)."""

    config: ModelConfig
    embed_tokens: Tensor
    layers: Sequence[DecoderLayer]
    norm: Tensor
    lm_head: Weight
    frequencies: Tensor
    amplitude: float

    @classmethod
    def build(cls, config: ModelConfig, take: TakeTensor, make_bank: MakeBank | None = None) -> "Network":
        """`take` gives the tensor of a Hub name; `make_bank` the experts of a layer (default: taken too)."""
        make_bank = make_bank or (lambda layer: resident_experts(config, layer, take))
        embed_tokens = plain(take("model.embed_tokens.weight"))
        layers = [build_layer(config, index, take, make_bank) for index in range(config.num_hidden_layers)]
        norm = plain(take("model.norm.weight"))
        return cls(
            config=config,
            embed_tokens=embed_tokens,
            layers=layers,
            norm=norm,
            lm_head=take("lm_head.weight"),
            frequencies=inverse_frequencies(config).to(norm.device),
            amplitude=amplitude(config),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, the cache, and weights that are not quantized."""
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        """Of everything but the embedding and routed experts, which may lie elsewhere."""
        return self.norm.device


def output_logits(hidden: Tensor, norm: Tensor, head: Weight, eps: float) -> Tensor:
    """Scores (T, vocabulary), float32, of hidden states (T, D): final norm (D,) and output head (vocabulary, D)."""
    logits = kernels.head(hidden, norm, head, eps)
    return kernels.linear(rms_norm(hidden, norm, eps), head).float() if logits is None else logits
