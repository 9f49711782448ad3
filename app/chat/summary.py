"""A new chat in place of one that fills the context: its system message holds a summary that the model has written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslite.runtime.text.message import Message

_REQUEST = (
    "Summarise our conversation so far, so that it can be continued from the summary alone: what was asked, what was"
    " found or decided, names, numbers and code that still matter. Write the summary only."
)
NONE_CAME = "there is no summary: the chat stays as it was, and /regen asks its last question again"
_HEAD = "What was said before, in a summary:"
_MAX_TOKENS = 1024


def request(messages: Sequence["Message"]) -> tuple["Message", ...]:
    """The prompt for a summary of messages."""
    from dslite.runtime.text.message import Message  # imported late: the first paint does not need it

    return (*messages, Message("user", _REQUEST))


def sampling(context: int) -> dict[str, Any]:
    """Sampling values of a summary: at most a quarter of the context (0: its size is not known)."""
    return {"max_tokens": min(_MAX_TOKENS, max(context // 4, 1)) if context else _MAX_TOKENS, "stop": ()}


def system_message(system: str | None, summary: str) -> str:
    """The new chat's system message: the old one, with this summary in place of an earlier one, which it covers."""
    return "\n\n".join(filter(None, (without(system), f"{_HEAD}\n{summary.strip()}")))


def without(system: str | None) -> str | None:
    """A system message without its summary, for a chat about something else."""
    return system if system is None or _HEAD not in system else system.partition(_HEAD)[0].rstrip()
