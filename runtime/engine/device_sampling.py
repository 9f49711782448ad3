"""Drawing tokens where the logits are: of a pass on a GPU one number a sequence comes to the host, in one copy.

The draw is that of sampling.Sampler, with the same noise. Filters become the smallest logit that takes part: of tokens
that are equal to it all do, where the host keeps those of the lower ids.
"""

# B sequences  V vocabulary

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dslite.model.kernels import gpu
from dslite.runtime.device import ComputeDevice

DAMAGED = -1  # in place of a token: the logits hold NaN or infinity
LEAST_TEMPERATURE = 1e-6  # a lower one would divide logits to infinity; the draw is greedy already


@dataclass(frozen=True)
class Race:
    """How a token is drawn: temperature 0 is greedy, top_k 0 is off; `key` is hashed from seed and position."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    key: int

    @property
    def filters(self) -> bool:
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    @property
    def inverse_temperature(self) -> float:
        return 1 / max(self.temperature, LEAST_TEMPERATURE) if self.temperature else 1.0


def usable(logits: Tensor) -> bool:
    """Whether the tokens of logits are drawn on their device."""
    return gpu.usable(logits.device)


def draw(logits: Tensor, races: Sequence[Race], tokens: int, device: ComputeDevice) -> list[int]:
    """A token of each of logits (B, V) float32, DAMAGED where they are not finite; no id from `tokens` on."""
    numbers = np.array(
        [[_bits(race.inverse_temperature), int(race.temperature > 0), race.key] for race in races], np.uint64
    )
    on_device = device.to_device(torch.from_numpy(numbers.view(np.int64)))
    if any(race.filters for race in races):
        least = _least(logits[:, :tokens], races, device)
    else:
        least = torch.full((len(races),), -torch.inf, device=logits.device)
    ids, _ = device.to_host(gpu.draw(logits, on_device, least, tokens))
    drawn: list[int] = ids.tolist()
    return drawn


def _least(logits: Tensor, races: Sequence[Race], device: ComputeDevice) -> Tensor:
    """The smallest logit (B,) of (B, V) that the filters leave. No step waits for the device."""
    count = logits.shape[1]
    rows = [
        (race.inverse_temperature, race.top_k or count, race.top_p, race.min_p)
        if race.filters
        else (1.0, count, 1.0, 0.0)
        for race in races
    ]
    inverse, top_k, top_p, min_p = device.to_device(torch.tensor(rows)).unsqueeze(-1).unbind(1)  # (B, 1) each
    values = logits.sort(descending=True).values
    heights = ((values - values[:, :1]) * inverse).exp()  # probabilities as shares of the greatest
    heights = heights.where(torch.arange(count, device=logits.device) < top_k, 0.0)
    sums = heights.cumsum(-1)
    keep = ((sums - heights < top_p * sums[:, -1:]) | (top_p >= 1)) & (heights >= min_p) & (heights > 0)
    return values.gather(1, keep.sum(-1, keepdim=True).clamp(min=1) - 1)[:, 0]


def _bits(value: float) -> int:
    return int(np.array([value]).view(np.uint64)[0])
