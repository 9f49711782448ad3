"""What is asked of the engine. Imports no torch: a command whose model runs in another process makes requests too."""

from collections import abc
from dataclasses import dataclass, replace

from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Token


@dataclass(frozen=True)
class Request:
    """A prompt and how to answer it.

    `logprobs` K: each token's log-probability and the K best; `echo`: the prompt's tokens too. `spaces` at the
    beginning of the answer are no part of it. `begun`: text of the answer that the prompt ends with. `given`: tokens
    that the answer begins with, taken in place of drawn ones: another process drew them, and ended.
    """

    prompt_ids: abc.Sequence[int]
    params: SamplingParams
    logprobs: int | None = None
    echo: bool = False
    spaces: int = 0
    begun: str = ""
    given: abc.Sequence[int] = ()

    def after(self, came: abc.Sequence[Token]) -> "Request":
        """The same, whose answer begins with tokens that another process has made."""
        given = [token.id for token in came if not token.in_prompt and token.id is not None]
        return replace(self, given=given)
