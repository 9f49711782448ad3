"""Rotary position embedding with YaRN frequencies (DeepSeek-V2 paper, section 2.1.3; YaRN, arXiv 2309.00071).

The pairs that rotate together are neighbours, (2i, 2i+1), as in the Hub's weights; cached keys keep that order.
"""

# T tokens  R rotary width  P = R/2 pairs

import math

import torch
from torch import Tensor

from dslite.model.config import ModelConfig, YarnConfig

ROPE_LAYOUT = "interleaved"  # stored with saved caches: other programs de-interleave


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair: (P,) float32."""
    width = config.qk_rope_head_dim
    plain = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)
    yarn = config.rope_scaling
    if yarn is None:
        return plain
    low, high = _ramp_bounds(config, yarn)
    ramp = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    return plain * (1 - ramp) + plain / yarn.factor * ramp


def _ramp_bounds(config: ModelConfig, yarn: YarnConfig) -> tuple[float, float]:
    """Pairs below the first bound rotate as trained, those above the second slower by the factor: 10, 23 for Lite."""

    def pair_of(turns: float) -> float:
        """The pair that makes `turns` rotations over the original context."""
        context = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.qk_rope_head_dim * math.log(context) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), config.qk_rope_head_dim - 1)
    return low, high if high > low else low + 0.001


def amplitude(config: ModelConfig) -> float:
    """The factor of cos and sin: m(mscale) / m(mscale_all_dim), 1 in every published model."""
    yarn = config.rope_scaling
    if yarn is None:
        return 1.0
    return YarnConfig.magnitude(yarn.factor, yarn.mscale) / YarnConfig.magnitude(yarn.factor, yarn.mscale_all_dim)


def rotation(positions: Tensor, frequencies: Tensor, amplitude: float) -> Tensor:
    """Complex factors e^{i·position·frequency} of positions (T,) and frequencies (P,): (T, P) complex64."""
    angles = positions.to(torch.float32)[:, None] * frequencies
    return torch.polar(torch.full_like(angles, amplitude), angles)


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate the pairs of x (T, ..., R) by factors (T, P), in float32. Paper, eq. 14 and 15."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())  # (T, ..., P)
    factors = factors.view(factors.shape[0], *[1] * (x.dim() - 2), factors.shape[1])
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)
