"""Which experts are worth a slot: how often each was used of late.

A copy into a slot and the host's products share the bandwidth of host memory, and a layer misses some expert in most
passes. So an expert that the host computes is copied only where it has been used more than once of late, and clearly
more often than the slot's expert: of experts that are used alike none is copied, which would change nothing.
"""

from collections.abc import Iterable, Sequence

import numpy as np

_KEPT = 1 - 1 / 64  # of a use's weight a pass later: a pass counts for about 64
_MARGIN = 1.0  # uses that an expert must be ahead of the one that it replaces


class RecentUses:
    """Uses of the experts of each layer, weighted by how recent they are."""

    def __init__(self, layers: Iterable[int], n_experts: int) -> None:
        self._uses = {layer: np.zeros(n_experts) for layer in layers}

    def count(self, layer: int, experts: Sequence[int]) -> None:
        """Count that a pass through a layer used these experts, each once."""
        uses = self._uses[layer]
        uses *= _KEPT
        uses[list(experts)] += 1

    def hottest(self, layer: int, experts: Iterable[int]) -> int:
        """The expert with the most uses; of several the first."""
        return max(experts, key=self._uses[layer].__getitem__)

    def coldest(self, layer: int, experts: Iterable[int]) -> int:
        """The expert with the fewest uses; of several the first."""
        return min(experts, key=self._uses[layer].__getitem__)

    def worth_replacing(self, layer: int, expert: int, resident: int) -> bool:
        """Whether an expert should have the slot of a resident one."""
        uses = self._uses[layer]
        return bool(uses[expert] > uses[resident] + _MARGIN)
