"""What a recorded step and the experts in slots say to each other.

The device routes tokens and computes those experts that its table has. The host learns which were chosen, and sees to
the others: it computes them, or fetches them for the device to compute.
"""

# T tokens  D hidden  E experts  K experts per token  M experts computed of a token, shared ones last

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class RoutedTokens:
    """The tokens of a recorded step behind a layer's router. Tensors are on the device, and used again by other layers.

    Of ids (T, M) the first `chosen` of a token are the router's. The rows from `count` on are copies of the first.
    """

    ids: Tensor  # (T, M) int64
    normed: Tensor  # (T, D): what the experts read
    count: int
    chosen: int
    table: Tensor  # (E, 4) int64: addresses of the experts in slots, zero for the others
    fetched: Tensor  # (E, 4) int64: the same of experts that `compute_fetched` launches the computing of
    arrived: Tensor  # (T·K, D) float32: outputs of the chosen experts that are in neither table, in the order of ids
    compute_fetched: Callable[[], None]


@runtime_checkable
class SlotBank(Protocol):
    """An ExpertBank whose experts in slots can be found by their addresses."""

    @property
    def addressable(self) -> bool:
        """Whether the experts lie as the kernels read them."""
        ...

    def begin_step(self, tokens: RoutedTokens) -> None:
        """Begin to bring the ids to the host; bring the table up to date. Waits for nothing.

        What is computed by the table is launched next.
        """
        ...

    def finish_step(self, tokens: RoutedTokens) -> None:
        """Wait for the ids; have each chosen expert that is not in the table computed."""
        ...
