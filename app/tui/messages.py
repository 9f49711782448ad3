"""What widgets and screens ask of the application. They post these messages; ChatApp handles them."""

from collections.abc import Callable
from dataclasses import dataclass

from textual.message import Message

from dslite.app.chat.comparison import AnswerComparison
from dslite.app.chat.token_scores import ScoredAnswer
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef


@dataclass
class Quit(Message):
    """Leave the chat with an exit code."""

    code: int = 0


@dataclass
class Interrupt(Message):
    """Ctrl+C where nothing is to be stopped or cleared: copy the selection, or quit at the second time."""

    selection: str = ""


@dataclass
class CopyText(Message):
    """Put a text into the clipboard; `what` names it to the user."""

    text: str
    what: str


@dataclass
class EditInEditor(Message):
    """Write the input in $EDITOR."""

    text: str


@dataclass
class UseTheme(Message):
    """A theme by its name; the next one for an empty name."""

    name: str = ""


class ToggleMouse(Message):
    """Leave the mouse to the terminal, or take it back."""


class ToggleInspector(Message):
    """Show or hide the inspector."""


class ShowHelp(Message):
    """F1."""


class ShowSessions(Message):
    """Ctrl+O."""


class ShowProfiles(Message):
    """F3."""


@dataclass
class AskOverflowChoice(Message):
    """The context is full."""

    error: DsliteError


@dataclass
class ShowComparison(Message):
    """Two answers are to be shown beside each other."""

    comparison: AnswerComparison


@dataclass
class ShowScores(Message):
    """The probabilities of an answer's tokens are known."""

    answer: ScoredAnswer


@dataclass
class Confirm(Message):
    """Ask whether something may be done; `then` does it."""

    question: str
    then: Callable[[], None]


@dataclass
class OfferModel(Message):
    """A model is not on this machine."""

    ref: ModelRef
    error: DsliteError


@dataclass
class AnswerFinished(Message):
    """An answer has ended; `seconds` is how long it took."""

    seconds: float


@dataclass
class TitleChanged(Message):
    """The chat on screen has another title, of visible characters."""

    title: str


class ConversationChanged(Message):
    """Another conversation is on screen: the one before is garbage."""


class ModelLoaded(Message):
    """A model is loaded: much memory that stays was just allocated."""
