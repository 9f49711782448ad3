"""The state of one answer: logits go in, tokens come out, until it has a finish reason.

It holds neither network nor cache, so that a single answer and those of a batch are made by the same code.
"""

import time
from collections import abc
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dslite.runtime.engine.device_sampling import Race
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling import Sampler, Scores, score
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Candidate, Done, FinishReason, Timing, Token
from dslite.runtime.text.tokenizer import StopTexts, StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from dslite.runtime.constraints.compiler import AnswerMatcher


class Sequence:
    """The growing answer to one request. `finish_reason` is set when it is over."""

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        *,
        end_tokens: frozenset[int],
        context: int,
        cached: int = 0,
        matcher: "AnswerMatcher | None" = None,
    ) -> None:
        """`context` is the most tokens of prompt and answer; `cached` how many of the prompt's were known already.

        `matcher` follows the shape that the answer is forced into.
        """
        self.request = request
        self.cached = cached
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        params = request.params
        self._end_tokens = (frozenset() if params.ignore_eos else end_tokens) | frozenset(params.stop_token_ids)
        self._room = context - len(request.prompt_ids)
        self._sampler = Sampler(request.params, request.prompt_ids, tokenizer.vocab_size)
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopTexts(request.params.stop)
        self._matcher = matcher
        self._text: list[str] = []
        self._end: Token | None = None
        self._stopped = False  # by a stop text
        self._failed: DsliteError | None = None
        self._started = time.perf_counter()
        self._prefilled = self._first = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    def echo(self, token_ids: abc.Sequence[int], logits: Tensor | None) -> list[Token]:
        """Tokens of the prompt; the logits (T, vocabulary) in front of each score it, where there are any."""
        k = self.request.logprobs
        if k is None or logits is None:
            top = None if k is None else ()
            return [replace(self._prompt_token(token_id), top=top) for token_id in token_ids]
        scored = zip(token_ids, score(logits, token_ids, k), strict=True)
        return [self._scored(self._prompt_token(token_id), scores) for token_id, scores in scored]

    def begin(self) -> None:
        """End the prefill: the answer begins, unless no token was asked for, the context is full or its shape is."""
        self._prefilled = time.perf_counter()
        if self._matcher is not None and self._matcher.finished:
            self.finish_reason = "stop"
        else:
            self._check_room()

    @property
    def race(self) -> Race:
        """How the next token is drawn, for a device that draws from adjusted logits."""
        return self._sampler.race

    def adjust(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) without tokens that may not come next, those that were seen penalised.

        An error of this sequence alone waits for `push`: others are drawn with it.
        """
        try:
            return self._sampler.penalise(self._allowed(logits))
        except DsliteError as error:
            self._failed = error
            return logits

    def push(self, logits: Tensor, drawn: int | None = None) -> list[Token]:
        """Take the next token: the request's own, drawn already, or from logits (vocabulary,).

        An end token ends the answer and is not returned. Raises DsliteError where its shape cannot be followed.
        """
        if self._failed is not None:
            raise self._failed
        if len(self.token_ids) < len(self.request.given):
            drawn = self.request.given[len(self.token_ids)]
        if drawn is None:
            token_id = self._sampler.sample(self._allowed(logits))
        else:
            token_id = drawn
            self._sampler.note(token_id)
        self.token_ids.append(token_id)
        self._first = self._first or time.perf_counter()
        if self._matcher is not None:
            self._matcher.accept(token_id)
        if token_id in self._end_tokens:
            self.finish_reason = "stop"
            self._end = self._drawn(Token(token_id, ""), token_id, logits)
            return []
        text = self._decoder.push(token_id)
        delta, stopped = self._stops.push(text)
        self._text.append(delta)
        self._stopped = stopped
        if stopped or (self._matcher is not None and self._matcher.finished):
            self.finish_reason = "stop"
        else:
            self._check_room()
        return [self._drawn(Token(token_id, text, delta), token_id, logits)]

    def interrupt(self) -> None:
        """End the answer with what it has."""
        self.finish_reason = self.finish_reason or "interrupted"

    def done(self) -> Done:
        """The end of the answer, with the text that waited for a stop text."""
        assert self.finish_reason is not None
        now = time.perf_counter()
        delta = ""
        if not self._stopped:
            # What waited for a stop text, or for the rest of a character, is text after all.
            delta, stopped = self._stops.push(self._decoder.flush())
            delta += "" if stopped else self._stops.flush()
            self._text.append(delta)
        return Done(
            finish_reason=self.finish_reason,
            text="".join(self._text),
            token_ids=tuple(self.token_ids),
            prompt_tokens=len(self.request.prompt_ids),
            cached_tokens=self.cached,
            delta=delta,
            end=self._end,
            timing=Timing(
                prefill_s=(self._prefilled or now) - self._started,
                decode_s=now - self._prefilled if self._prefilled else 0.0,
                ttft_s=(self._first or now) - self._started,
            ),
        )

    def _check_room(self) -> None:
        most = self.request.params.max_tokens
        if most is not None and len(self.token_ids) >= most:
            self.finish_reason = "length"
        elif len(self.token_ids) >= self._room:
            self.finish_reason = "context"

    def _allowed(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) of tokens that may come next: of those that keep the answer's shape where it has one.

        Else no end token while the answer is shorter than `min_tokens`.
        """
        if self._matcher is not None:
            return self._matcher.restrict(logits)
        if len(self.token_ids) >= self.request.params.min_tokens or not self._end_tokens:
            return logits
        ends = torch.tensor(sorted(self._end_tokens), device=logits.device)
        return logits.index_fill(0, ends, -torch.inf)

    def _prompt_token(self, token_id: int) -> Token:
        text = self._decoder.push(token_id)
        self._text.append(text)
        return Token(token_id, text, text, in_prompt=True)

    def _drawn(self, token: Token, token_id: int, logits: Tensor) -> Token:
        """A token that was drawn from logits (vocabulary,), with its log-probabilities where they were asked for."""
        k = self.request.logprobs
        return token if k is None else self._scored(token, score(logits[None], [token_id], k)[0])

    def _scored(self, token: Token, scores: Scores) -> Token:
        name = self._tokenizer.token_text
        top = tuple(Candidate(candidate, name(candidate), logprob) for candidate, logprob in scores.top)
        return replace(token, logprob=scores.logprob, top=top)
