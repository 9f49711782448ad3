"""The events of the runtime: everything that a screen shows of its work comes as one of these."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FinishReason = Literal["stop", "length", "interrupted", "context"]
Stage = Literal["waiting", "fetching", "retrying", "checking", "done"]


@dataclass(frozen=True)
class Found:
    """The files of a model on the Hub, before any of them is fetched. Sizes in bytes."""

    repo_id: str
    commit: str
    licence: str
    licence_url: str
    total_bytes: int
    present_bytes: int
    free_bytes: int
    place: Path

    @property
    def missing_bytes(self) -> int:
        return self.total_bytes - self.present_bytes


@dataclass(frozen=True)
class Downloading:
    """The progress of one file: waiting for another process, fetching, retrying, checking its hash, or done.

    `all_*` count every file of the model. `note` says why it waits or tries again.
    """

    stage: Stage
    file: str
    done_bytes: int
    total_bytes: int
    all_done_bytes: int
    all_total_bytes: int
    bytes_per_s: float = 0.0
    note: str = ""

    @property
    def left_s(self) -> float | None:
        """Seconds to go at this rate; None while it is not known."""
        return (self.all_total_bytes - self.all_done_bytes) / self.bytes_per_s if self.bytes_per_s else None


@dataclass(frozen=True)
class Present:
    """All files are present with the Hub's hashes. `older` are commits of the same model that are still on disk."""

    folder: Path
    commit: str
    older: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loading:
    """Bytes of the weights that are loaded."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Compiling:
    """Steps in which a GPU is made ready once the weights are loaded: kernels compiled, the decode step recorded."""

    done: int
    total: int


@dataclass(frozen=True)
class Prefilling:
    """Prefilled prompt tokens, cached ones included. Between two layers `done` is not a whole number."""

    done: float
    total: int
    cached: int
    elapsed_s: float


@dataclass(frozen=True)
class Candidate:
    """A candidate for a token, with its log-probability. `id` is None where a server did not send it."""

    id: int | None
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token. `text` is what became printable with it; `delta` what may be shown: a possible stop text waits.

    `id` is None where a server did not send it; such a "token" may be any piece of text.
    """

    id: int | None
    text: str
    delta: str = ""
    logprob: float | None = None
    top: tuple[Candidate, ...] | None = None
    in_prompt: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds of an answer, from its request on."""

    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0


@dataclass(frozen=True)
class Done:
    """The end of an answer. `text` is all of it; `delta` the text that had waited; `end` the end token, if one came.

    `counted` is a server's own count of the tokens that it made, whose ids it did not send.
    """

    finish_reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    delta: str = ""
    end: Token | None = None
    timing: Timing = field(default_factory=Timing)
    counted: int | None = None

    @property
    def completion_tokens(self) -> int:
        """The number of generated tokens, the end token included."""
        return len(self.token_ids) if self.counted is None else self.counted


@dataclass(frozen=True)
class Thinking:
    """A piece of a server's reasoning, which is not part of the answer. `tokens`: how many such pieces came so far."""

    text: str
    tokens: int


@dataclass(frozen=True)
class Waiting:
    """A server is overloaded: the request is sent again after `seconds`."""

    reason: str
    seconds: float


@dataclass(frozen=True)
class Notice:
    """A warning about an answer that goes on, for the user to read."""

    message: str


LoadingEvent = Loading | Compiling
Event = Prefilling | Token | Done
ChatEvent = Event | Thinking | Waiting | Notice
PullEvent = Found | Downloading | Present
