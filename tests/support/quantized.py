"""Quantized networks of tiny checkpoints, made in memory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.quantized import Weight, mlp_views, quantize
from dslite.model.quantized_layout import Weights, mlp_bytes, weight_format
from dslite.model.transformer import Transformer


def quantized_weights(tensors: Mapping[str, Tensor], weights: Weights) -> dict[str, Weight]:
    """The parameters of a model with such weights; each MLP lies in one piece."""
    made: dict[str, Weight] = dict(tensors)
    for name, tensor in tensors.items():
        kind = weight_format(name, weights)
        if kind is None or name.endswith(("gate_proj.weight", "up_proj.weight")):
            continue
        if not name.endswith("down_proj.weight"):
            made[name] = quantize(tensor, kind)
            continue
        hidden, width = tensor.shape
        views = mlp_views(torch.empty(mlp_bytes(hidden, width, kind), dtype=torch.uint8), kind, hidden, width)
        for part, view in zip(("gate_proj", "up_proj", "down_proj"), views, strict=True):
            made[name.replace("down_proj", part)] = quantize(tensors[name.replace("down_proj", part)], kind, view)
    return made


def dequantized(parameters: Mapping[str, Weight]) -> dict[str, Tensor]:
    """The same as float32 tensors."""
    return {
        name: weight.float() if isinstance(weight, Tensor) else weight.dequantize()
        for name, weight in parameters.items()
    }


def build(config: Mapping[str, Any], parameters: Mapping[str, Weight], dtype: torch.dtype) -> Transformer:
    """A network of these parameters; those that are not quantized in a dtype."""

    def take(name: str) -> Weight:
        weight = parameters[name]
        return weight.to(dtype) if isinstance(weight, Tensor) else weight

    return Transformer.build(ModelConfig.from_dict(config), take)
