"""A new chat in place of one that fills the context: its system message holds a summary that the model has written."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslite.runtime.text.chat_template import Message

_REQUEST = (
    "Summarise our conversation so far, so that it can be continued from the summary alone: what was asked, what was"
    " found or decided, names, numbers and code that still matter. Write the summary only."
)
NONE_CAME = "there is no summary: the chat stays as it was, and /regen asks its last question again"
_HEAD = "What was said before, in a summary:"
_MOST_TOKENS = 1024


def request(messages: Sequence["Message"]) -> list["Message"]:
    """What the model is given to read for a summary of messages."""
    from dslite.runtime.text.chat_template import Message  # not above: the first picture does not wait for it

    return [*messages, Message("user", _REQUEST)]


def chosen(values: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Sampling values of a summary: it may take a quarter of the context at most (0: its size is not known)."""
    most = min(_MOST_TOKENS, max(context // 4, 1)) if context else _MOST_TOKENS
    return {**values, "max_tokens": most, "stop": ()}


def system_message(system: str | None, summary: str) -> str:
    """The new chat's system message; an earlier summary in the old one gives way to this one, which covers it."""
    return "\n\n".join(filter(None, (without(system), f"{_HEAD}\n{summary.strip()}")))


def without(system: str | None) -> str | None:
    """A system message without a summary: what a chat about something else begins with."""
    return system if system is None or _HEAD not in system else system.partition(_HEAD)[0].rstrip()
