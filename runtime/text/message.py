"""The messages of a conversation, and the space before an answer. Imports neither tokenizers nor templates: a command
whose model runs in another process needs no more than this.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done, Token

Role = Literal["system", "user", "assistant"]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn. `token_ids` are what the model generated for it, where it did."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, raw: Any) -> "Message":
        """Parse {"role": …, "content": …}. Raises UsageError."""
        if not isinstance(raw, dict) or raw.get("role") not in _ROLES or not isinstance(raw.get("content"), str):
            raise UsageError(
                "a message must be an object with role (system, user or assistant) and content (text)",
                'write it as {"role": "user", "content": "…"}',
            )
        return cls(raw["role"], raw["content"])


def with_system_text(messages: Sequence[Message], text: str) -> list[Message]:
    """A conversation with a further paragraph in its system message, which it may not have yet."""
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]


def begun_answer(messages: Sequence[Message]) -> str:
    """The text of an answer at the end of a conversation that the model is to go on with.

    Without the spaces at its end: a prompt that ended in a lone space would be a text that the model never saw, as its
    tokens begin with their space.
    """
    return messages[-1].content.rstrip(" ")


@dataclass
class AnswerSpacing:
    """Removes up to `spaces` spaces from the beginning of an answer.

    One stands between the template and every chat answer. Where an answer is continued, they are the spaces that the
    text to be continued ended with and the prompt left out.
    """

    spaces: int
    _left: int = field(init=False)

    def __post_init__(self) -> None:
        self._left = self.spaces

    def strip(self, event: Token | Done) -> Token | Done:
        """The event without them, in its delta and, at the end, in the whole text."""
        if event.delta and self._left:
            delta = _without_spaces(event.delta, self._left)
            self._left = 0 if delta else self._left - len(event.delta)
            event = replace(event, delta=delta)
        if isinstance(event, Done):
            event = replace(event, text=_without_spaces(event.text, self.spaces))
        return event


def _without_spaces(text: str, most: int) -> str:
    return text[min(most, len(text) - len(text.lstrip(" "))) :]
