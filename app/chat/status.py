"""What the chat is doing: the model's state, the reply's state, and the numbers that a status line shows."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.events import LoadingEvent, Prefilling

WARN_AT = 0.85  # used share of the context from which views warn


class ModelState(Enum):
    """STARTING: the model is looked for. NONE: no model is loaded, and none is being loaded."""

    STARTING = auto()
    LOADING = auto()
    READY = auto()
    NONE = auto()


class ReplyState(Enum):
    """QUEUED: it waits for a model. STOPPING: cancelled, and the engine has not ended it yet."""

    QUEUED = auto()
    PREFILLING = auto()
    DECODING = auto()
    STOPPING = auto()
    DONE = auto()


@dataclass
class ChatStatus:
    """Everything that a status line and the inspector show. The controller writes it, views read it."""

    model: ModelState = ModelState.STARTING
    reply: ReplyState = ReplyState.DONE
    loading: LoadingEvent | None = None
    prefilling: Prefilling | None = None
    thinking: int = 0  # tokens of a server's reasoning, until the answer begins
    rate: float = 0.0  # tokens/s while decoding, or of the last answer
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=600))  # `rate` over time
    used: int = 0  # tokens of the context
    stats: ModelStats | None = None
    waiting: tuple[str, ...] = ()  # messages that wait for the end of the answer
    unsaved: str = ""  # why this chat is not saved
    hint: str = ""  # takes the place of all else for a moment
    facts: str = ""  # of the message that is marked

    def add_rate(self, rate: float) -> None:
        """Note the speed of this moment, in tokens/s."""
        self.rate = rate
        self.rates.append(rate)

    @property
    def idle(self) -> bool:
        """Whether a model is ready and no answer is generated."""
        return self.model is ModelState.READY and self.reply is ReplyState.DONE

    @property
    def fullness(self) -> float:
        """Used share of the context; 0 while its size is not known."""
        return self.used / self.stats.context if self.stats and self.stats.context else 0.0
