"""Decides what to do when a conversation fills the context.

The user chooses once for each conversation, or config.toml for all.
"""

from enum import Enum, auto

from dslite.app.chat.launch import WhenFull
from dslite.app.chat.message_tree import MessageTree
from dslite.app.chat.status import WARN_AT, ChatStatus

_AT_THE_LIMIT: dict[WhenFull, str] = {
    "ask": "at its limit you may forget the oldest turns, or go on in a new chat with a summary",
    "forget": "at its limit the oldest turns are forgotten",
    "summary": "at its limit a new chat begins with a summary of this one",
    "stop": "at its limit this chat ends",
}


class OverflowDecision(Enum):
    """FORGET: leave out the oldest turns. SUMMARIZE: go on in a new chat. REFUSE: show the error."""

    ASK = auto()
    FORGET = auto()
    SUMMARIZE = auto()
    REFUSE = auto()


_DECISIONS: dict[WhenFull, OverflowDecision] = {
    "ask": OverflowDecision.ASK,
    "forget": OverflowDecision.FORGET,
    "summary": OverflowDecision.SUMMARIZE,
    "stop": OverflowDecision.REFUSE,
}


class ContextOverflow:
    """The choice that holds for one conversation."""

    def __init__(self, when_full: WhenFull) -> None:
        self._default = self._choice = when_full
        self._warned = False

    def begin(self, *, keep_choice: bool = False) -> None:
        """Another conversation is active; one that goes on from a summary keeps the choice."""
        self._choice = self._choice if keep_choice else self._default
        self._warned = False

    def warning(self, status: ChatStatus) -> str | None:
        """That the limit is near, once for each conversation."""
        if self._warned or status.fullness < WARN_AT:
            return None
        self._warned = True
        return f"the context is {status.fullness:.0%} full: {_AT_THE_LIMIT[self._choice]}"

    def decide(self, tree: MessageTree) -> OverflowDecision:
        """What to do with a question, or an answer that goes on, that does not fit."""
        if sum(node.role == "user" for node in tree.path()) < 2:
            return OverflowDecision.REFUSE  # there is no older turn to leave out
        return _DECISIONS[self._choice]

    def choose(self, choice: WhenFull) -> OverflowDecision:
        """The user's choice; after `stop` the next question asks again."""
        if choice != "stop":
            self._choice = choice
        return _DECISIONS[choice]
