"""What a chat needs of a model. Imports no torch: the screen appears before the model is loaded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING, Protocol

from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import ChatEvent, Prefilling, Token

if TYPE_CHECKING:
    from dslite.runtime.text.message import Message


@dataclass(frozen=True)
class ModelStats:
    """Sizes and counters of a model, for the screen.

    `context` is in tokens, 0 where it is not known. `experts` has what the engine counts: slots, hits, misses,
    bytes_moved. `uses`: how often each expert of each MoE layer was chosen, None where that is not counted.
    """

    name: str
    device: str
    context: int
    weights: str | None = None  # their format; None where a server has them
    memory: Mapping[str, int] = field(default_factory=dict)
    experts: Mapping[str, int] = field(default_factory=dict)
    uses: Sequence[Sequence[int]] | None = None
    first_moe_layer: int = 0
    experts_per_layer: int = 0
    kv_bytes_per_token: int = 0
    plain_kv_bytes_per_token: int = 0  # what attention would cache without latents


class ChatBackend(Protocol):
    """Answers messages. What a backend does not have (a cache on disk, counted experts) it leaves as it is here."""

    def reply(
        self,
        messages: Sequence["Message"],
        params: SamplingParams,
        cancel: Flag,
        *,
        continue_final_message: bool = False,
        on_prefill: Callable[[Prefilling], None] | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer; with `continue_final_message`, lengthen the last message, which is an answer that was cut.

        `on_prefill` is called, on the same thread, with progress between two events of the iterator, where a backend
        knows it. Raises ContextFullError where the messages do not fit.
        """
        ...

    def trim_to_fit(self, messages: Sequence["Message"], *, continue_final_message: bool = False) -> list["Message"]:
        """The messages without the oldest turns that the context cannot take. Raises ContextFullError."""
        ...

    def stats(self) -> ModelStats:
        """Sizes and counters at this moment."""
        ...

    def restore_cache(self, key: str, messages: Sequence["Message"], *, continue_final_message: bool = False) -> None:
        """Before a reply: load the saved cache of a conversation, as far as its messages are still the same."""
        return None

    def save_cache(self, key: str) -> None:
        """Write the cache that the last reply left as the conversation's."""
        return None

    def score(self, messages: Sequence["Message"], top: int, cancel: Flag) -> list[Token] | None:
        """The tokens of the last message, an answer, each with its log-probability and the `top` most likely ones.

        None where this backend cannot tell them; else it costs one prefill. Raises ContextFullError.
        """
        return None

    def close(self) -> None:
        """The backend is not used any more."""
        return None

    def reset_expert_counts(self) -> None:
        """Start the counts of used experts again: another conversation begins."""
        return None
