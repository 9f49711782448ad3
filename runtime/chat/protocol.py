"""What a chat talks to: something that answers messages. Free of torch: a screen is there before the model is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Event

if TYPE_CHECKING:
    from dslite.runtime.text.chat_template import Message


@dataclass(frozen=True)
class ModelStats:
    """What a screen tells about a model. `experts` has what the engine counts: slots, hits, misses, bytes_moved, and
    `uses`, where the engine counts them: how often each expert of each MoE layer was chosen."""

    name: str
    device: str
    context: int
    memory: Mapping[str, int] = field(default_factory=dict)
    experts: Mapping[str, int] = field(default_factory=dict)
    uses: Sequence[Sequence[int]] | None = None
    first_moe_layer: int = 0
    experts_per_layer: int = 0
    kv_bytes_per_token: int = 0
    plain_kv_bytes_per_token: int = 0  # what attention would cache without latents


class ChatBackend(Protocol):
    """What answers messages."""

    def reply(
        self, messages: Sequence["Message"], params: SamplingParams, cancel: Flag, *, go_on: bool = False
    ) -> Iterator[Event]:
        """Answer; with `go_on`, lengthen the last message, which is an answer that was cut.

        Raises ContextFullError where the messages do not fit.
        """
        ...

    def fit(self, messages: Sequence["Message"], *, go_on: bool = False) -> list["Message"]:
        """The messages without the oldest turns that the context cannot take. Raises ContextFullError."""
        ...

    def facts(self) -> ModelStats:
        """How it stands now."""
        ...


@runtime_checkable
class CountsExpertUse(Protocol):
    """A responder that counts for each conversation how often its experts are used."""

    def count_anew(self) -> None:
        """Another conversation begins."""
        ...


@runtime_checkable
class PersistsCache(Protocol):
    """A responder that keeps on disk what it computed of a saved conversation."""

    def recall(self, key: str, messages: Sequence["Message"], *, go_on: bool = False) -> None:
        """Before a reply: take what is saved of the conversation, as far as the messages are still the same."""
        ...

    def keep(self, key: str) -> None:
        """Save what the last reply left, as the conversation's."""
        ...
