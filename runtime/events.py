"""What the runtime tells while it works. Everything that a screen shows comes as one of these."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "interrupted", "context"]


@dataclass(frozen=True)
class Loading:
    """Bytes of the weights that are in place."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Prefilling:
    """Prompt tokens read so far, the cached ones among them. `done` is a fraction of a token between layers."""

    done: float
    total: int
    cached: int
    elapsed_s: float


@dataclass(frozen=True)
class Candidate:
    """A token that might have come, with its log-probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Token:
    """One token. `text` is what became printable with it; `delta` what may be shown now: a possible stop text waits."""

    id: int
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
    """The end of an answer. `text` is all of it; `delta` is what had been held back."""

    finish_reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    delta: str = ""
    timing: Timing = field(default_factory=Timing)


Event = Prefilling | Token | Done
