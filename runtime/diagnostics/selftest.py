"""Compares a model with published greedy continuations of the base weights; near ties are counted apart.

Two correct programs diverge at near ties, and after the first token that differs everything does. So each published
token is judged after the published ones before it: it is the likeliest here, nearly the likeliest, or wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dslite.runtime.downloads.layout import read_json
from dslite.runtime.events import Token

if TYPE_CHECKING:
    from dslite.runtime.engine.request import Request
    from dslite.runtime.text.tokenizer import Tokenizer

MODEL = "base"
_FILE = "deepseek-v2-lite.greedy.json"


class Answers(Protocol):
    """What the test needs of an engine."""

    tokenizer: "Tokenizer"

    def generate(self, request: "Request") -> Iterator[Any]: ...


@dataclass(frozen=True)
class Difference:
    """A published token that is not the likeliest here: both, and how many nats lie between them."""

    place: int
    published: str
    ours: str
    gap: float


@dataclass(frozen=True)
class PromptResult:
    """One prompt: `agreeing` of `tokens` are the likeliest here; the others are near ties, or wrong."""

    prompt: str
    tokens: int
    agreeing: int
    near_ties: tuple[Difference, ...]
    wrong: tuple[Difference, ...]
    same_prompt_ids: bool

    @property
    def passed(self) -> bool:
        return self.same_prompt_ids and not self.wrong


def read_published() -> dict[str, Any]:
    """The published continuations: `sets`, each with its model, engine, source and `near_tie_nats`."""
    raw: dict[str, Any] = read_json(Path(str(files("dslite.assets") / _FILE)))
    return raw


def run(engine: Answers, sets: list[dict[str, Any]]) -> Iterator[PromptResult]:
    """Run every published prompt."""
    for made in sets:
        for entry in made["entries"]:
            yield _judge(engine, entry, made["near_tie_nats"])


def _judge(engine: Answers, entry: dict[str, Any], near_tie: float) -> PromptResult:
    from dslite.runtime.engine.request import Request
    from dslite.runtime.engine.sampling_params import SamplingParams

    prompt, answer = entry["prompt_ids"], entry["greedy_ids"]
    scored = Request([*prompt, *answer], SamplingParams(temperature=0, max_tokens=0), logprobs=1, echo=True)
    tokens = [event for event in engine.generate(scored) if isinstance(event, Token)][len(prompt) :]
    differing = [found for place, token in enumerate(tokens) if (found := _difference(engine, place, token))]
    return PromptResult(
        prompt=entry["prompt"],
        tokens=len(answer),
        agreeing=len(answer) - len(differing),
        near_ties=tuple(found for found in differing if found.gap <= near_tie),
        wrong=tuple(found for found in differing if found.gap > near_tie),
        same_prompt_ids=engine.tokenizer.encode(entry["prompt"]) == prompt,
    )


def _difference(engine: Answers, place: int, token: Token) -> Difference | None:
    assert token.top
    assert token.id is not None
    assert token.logprob is not None
    best = token.top[0]
    if best.id == token.id or best.logprob == token.logprob:
        return None
    return Difference(place, engine.tokenizer.token_text(token.id), best.text, best.logprob - token.logprob)
