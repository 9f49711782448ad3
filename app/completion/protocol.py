"""What `complete` needs of answers and of the two backends that make them: this process (local.py) or a server
(remote.py).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from dslite.model.errors import DsliteError
from dslite.runtime.constraints.constraint import with_instruction
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done, Token
from dslite.runtime.text.message import Message

RAW_MAX_TOKENS = 256


@dataclass(frozen=True)
class CompletionOptions:
    """How prompts become requests; the same for all prompts of a call."""

    sampling: Mapping[str, Any]
    raw: bool = False
    bos: bool = True
    parse_special: bool = False  # spellings of added tokens in a raw prompt are those tokens
    system: str | None = None
    logprobs: int | None = None
    echo: bool = False
    tells_constraint: bool = True  # a forced shape of the answer stands in the system message too

    def told(self, messages: Sequence[Message], params: SamplingParams) -> list[Message]:
        """A conversation as the model gets it."""
        return with_instruction(messages, params.constraint if self.tells_constraint else None)


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids: neither template nor begin-of-sentence token is added, and nothing is left out."""

    ids: tuple[int, ...]


@dataclass
class Answer:
    """An answer while it grows; `done` once it is whole."""

    tokens: list[Token] = field(default_factory=list)
    text: str = ""
    reply: str = ""  # the text without an echoed prompt
    done: Done | None = None

    def add(self, event: Token | Done) -> None:
        self.text += event.delta
        if isinstance(event, Token):
            self.tokens.append(event)
            self.reply += "" if event.in_prompt else event.delta
        else:
            self.done = event
            self.reply += event.delta

    @property
    def generated(self) -> list[Token]:
        """The tokens that the model generated, its end token left out."""
        return [token for token in self.tokens if not token.in_prompt]


class CompletionRequest(Protocol):
    """A request to a backend: of its own type, with the sampling parameters that are saved with an answer."""

    @property
    def params(self) -> SamplingParams: ...


RequestT = TypeVar("RequestT", bound=CompletionRequest)
RequestT_co = TypeVar("RequestT_co", bound=CompletionRequest, covariant=True)
Prompt = str | Sequence[Message] | TokenPrompt


class RequestSource(Protocol[RequestT_co]):
    """The requests of a batch, each with its key. No more of them are taken than can be worked on."""

    def take(self, *, wait: bool) -> tuple[int, RequestT_co] | None:
        """The next one; None where there is none now or, with `wait`, where no more will come."""
        ...


class CompletionBackend(Protocol[RequestT]):
    """Answers prompts with the options of one call, one at a time or many together."""

    name: str
    key: str
    weights: str | None  # the format of the weights; None where a server has them
    load_s: float
    process: str | None  # "warm" where a process of its own computes; None: this one, or a server

    def serves(self, model: str) -> bool:
        """Whether a model's name, as -m takes it, means the model of this backend."""
        ...

    def request(self, prompt: Prompt, overrides: Mapping[str, Any] | None = None) -> RequestT:
        """The request of a text, a conversation or token ids. Raises UsageError, ContextFullError."""
        ...

    def check_fits(self, request: RequestT) -> None:
        """Raise ContextFullError for what is known not to fit."""
        ...

    def stream(self, request: RequestT, cancel: threading.Event) -> Iterator[Token | Done]:
        """The tokens of an answer and its end; prefill shows on the status line. Raises DsliteError."""
        ...

    def run_batch(
        self, requests: RequestSource[RequestT], cancel: threading.Event
    ) -> Iterator[tuple[int, Answer | DsliteError]]:
        """Answer requests together as they come: each one's answer or error by its key, as they end.

        `cancel` ends the answers that have begun; requests that have not begun give nothing.
        """
        ...

    def resume(self, conversation: str, request: RequestT) -> None:
        """Load the cache that is saved of a conversation."""
        ...

    def keep(self, conversation: str) -> None:
        """Save the cache of a conversation, for when it goes on."""
        ...

    def memory(self) -> Mapping[str, int | None]:
        """Bytes by part, as the contract names them; None where they are unknown."""
        ...

    def experts(self) -> Mapping[str, int | None]:
        """Slots and what they saved and cost; None where they are unknown."""
        ...


def messages_of(prompt: str | Sequence[Message], system: str | None) -> list[Message]:
    """A conversation from a prompt, under a system message where it has none of its own."""
    messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return messages


def unexpected(error: BaseException) -> DsliteError:
    """What is reported of an exception that the program did not foresee; the log has its traceback."""
    return DsliteError(f"unexpected {type(error).__name__}: {error}", "the log has the details")
