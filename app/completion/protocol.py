"""What `complete` knows of answers and of those who make them: this process (completer.py) or a server
(remote_completer.py).
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dslite.model.errors import DsliteError
from dslite.runtime.events import Done, Prefilling, Token
from dslite.runtime.text.chat_template import Message

RAW_MAX_TOKENS = 256


@dataclass(frozen=True)
class CompletionOptions:
    """How prompts are read and answers told; the same for all prompts of a call."""

    sampling: Mapping[str, Any]
    raw: bool = False
    bos: bool = True
    system: str | None = None
    logprobs: int | None = None
    echo: bool = False


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
    def made(self) -> list[Token]:
        """The tokens that the model generated, its end token left out."""
        return [token for token in self.tokens if not token.in_prompt]


class CompletionBackend(Protocol):
    """Makes answers to prompts in one style. A request is what `request` gives; nobody else looks into it."""

    name: str
    key: str
    load_s: float

    def request(self, prompt: str | Sequence[Message], overrides: Mapping[str, Any] | None = None) -> Any:
        """What to ask for a text or a conversation. Raises UsageError."""
        ...

    def check(self, request: Any) -> None:
        """Raise ContextFullError for what is known not to fit."""
        ...

    def stream(self, request: Any, cancel: threading.Event) -> Iterator[Token | Done]:
        """The tokens of an answer and its end; reading the prompt shows on the status line."""
        ...

    def join(self, key: int, request: Any) -> None:
        """Answer a request together with others. Raises ContextFullError."""
        ...

    def together(self, cancel: threading.Event) -> Iterator[tuple[int, Token | Done | DsliteError]]:
        """What happens to the requests that joined, by their keys; on `cancel` those that have begun end."""
        ...

    def resume(self, talk: str, request: Any) -> None:
        """Take up what is saved of a conversation."""
        ...

    def keep(self, talk: str) -> None:
        """Save what may be taken up when a conversation goes on."""
        ...

    def memory(self) -> Mapping[str, int | None]:
        """Bytes by part, as the contract names them; None where nobody knows."""
        ...

    def experts(self) -> Mapping[str, int | None]:
        """Slots and what they saved and cost; None where nobody knows."""
        ...


def reading(event: Prefilling) -> str:
    """How far a prompt is read, for the status line."""
    speed = (event.done - event.cached) / event.elapsed_s if event.elapsed_s > 0 else 0.0
    return f"reading {event.done:,.0f} of {event.total:,} · {speed:,.0f} tok/s"


def messages_of(prompt: str | Sequence[Message], system: str | None) -> list[Message]:
    """A conversation from a prompt, under a system message where it has none of its own."""
    messages = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if system and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return messages
