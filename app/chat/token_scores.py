"""How likely each token of an answer was, what else the model might have written, and the branch that begins there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dslite.app.chat.message_tree import Node
from dslite.runtime.events import Candidate, Token


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with the log-probabilities of its tokens, and for each the most likely candidates."""

    node: Node
    tokens: tuple[Token, ...]

    def probability(self, place: int) -> float:
        """That of a token, before temperature and filters."""
        logprob = self.tokens[place].logprob
        return math.exp(logprob) if logprob is not None else 1.0

    def next_unlikely(self, place: int, below: float) -> int:
        """The next token behind a place that is less likely, or the first one of all; the place itself without one."""
        places = [*range(place + 1, len(self.tokens)), *range(place + 1)]
        return next((other for other in places if self.probability(other) < below), place)

    def with_candidate(self, place: int, candidate: Candidate) -> tuple[str, tuple[int, ...]]:
        """The text and the ids of the answer up to a token, with a candidate in its place."""
        before = self.tokens[:place]
        text = "".join(token.text for token in before) + candidate.text
        ids = [token.id for token in before] + [candidate.id]
        return text.removeprefix(" "), tuple(token_id for token_id in ids if token_id is not None)


def candidates(token: Token) -> Sequence[Candidate]:
    """What the model might have written in the place of a token, the most likely first."""
    return token.top or ()
