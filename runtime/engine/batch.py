"""Many answers at once over one network.

Each sequence has its own cache and its own answer. A step is one forward pass: pieces of the prompts that wait, and one
token of every running answer, so that the weights which one token needs are read once for all. Sequences join and leave
between any two steps. A prompt that begins like one whose rows are at hand copies them and computes only the rest.
"""

# B running sequences  D hidden

from collections import OrderedDict, abc
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from dslite.model.attention import Span, last_of_each
from dslite.runtime.cache.branch_cache import common_prefix
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.device import is_out_of_memory
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sampling import check_finite
from dslite.runtime.engine.sequence import Request, Sequence
from dslite.runtime.errors import DsliteError, OutOfMemoryError
from dslite.runtime.events import Event, Prefilling
from dslite.runtime.planning.hardware import free_memory
from dslite.runtime.weights.experts import with_room

DEFAULT_BATCH = 16  # what the compiled kernels of a CPU take at once
_PIECE = 512  # prompt tokens read in one step: what the others wait for
_SHARE = 0.5  # of what is free once the weights are in place: the rest is for the work and other programs
_WORTH_WAITING = 16  # tokens of a shared beginning; fewer are computed twice rather than waited for


@dataclass
class _BatchSequence:
    """One answer of the batch. `ids` are the tokens whose rows are in the cache."""

    key: Hashable
    answer: Sequence
    cache: LatentKVCache
    ids: list[int] = field(default_factory=list)

    @property
    def prompt(self) -> abc.Sequence[int]:
        return self.answer.request.prompt_ids

    @property
    def unread(self) -> abc.Sequence[int]:
        """Tokens of the prompt that are still to be read."""
        return self.prompt[len(self.ids) :]


@dataclass(frozen=True)
class ScheduledChunk:
    """What a sequence does in a step: tokens to run, of its prompt (`reads`) or the last of its answer."""

    sequence: _BatchSequence
    ids: abc.Sequence[int]
    reads: bool


BatchEvent = tuple[Hashable, Event | DsliteError]


def room(engine: Engine, most: int) -> int:
    """Tokens that the caches of `most` sequences may take together: what memory allows, a context for each at most."""
    per_token = kv_bytes_per_token(engine.model.config, engine.model.dtype)
    free = int(free_memory(engine.model.device.type) * _SHARE)
    if engine.memory_left is not None:
        free = min(free, engine.memory_left)
    return max(engine.context, min(most * engine.context, free // per_token))


class Batch:
    """Requests join under a key of the caller's; each step returns what happened, as (key, event or error)."""

    def __init__(self, engine: Engine, *, most: int = DEFAULT_BATCH, tokens: int | None = None) -> None:
        """`most` sequences run together; further ones wait their turn.

        `tokens` is the most that the caches of all of them take, finished ones included; None: as `room` says.
        """
        self._engine = engine
        self._most = most
        self._piece = _PIECE
        self._tokens = room(engine, most) if tokens is None else max(engine.context, tokens)
        self._waiting: OrderedDict[Hashable, Request] = OrderedDict()
        self._running: dict[Hashable, _BatchSequence] = {}
        self._left: list[_BatchSequence] = []  # finished ones, oldest first: their rows may serve those to come

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def join(self, key: Hashable, request: Request) -> None:
        """Take a request. Raises ContextFullError."""
        self._engine.check_fits(request)
        self._waiting[key] = request

    def leave(self, key: Hashable) -> None:
        """Forget a request whose answer nobody wants any more; what was computed of it may serve another."""
        self._waiting.pop(key, None)
        if key in self._running:
            self._retire(self._running[key])

    def step(self) -> list[BatchEvent]:
        """Read pieces of prompts, and make a token of every answer that has begun."""
        events = self._admit_waiting()
        work = [*self._reading(), *self._answering()]
        if not work:
            return events
        try:
            rows, logits = self._forward(work)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            told = OutOfMemoryError.of(error, f"{len(work)} answers at once")
        else:
            return events + self._take(work, rows, logits)
        # Outside of the handler: the error's traceback would keep the memory of what failed.
        return events + self._recover_from_oom(work, told)

    def interrupt(self) -> list[BatchEvent]:
        """End all: an answer that has begun keeps what came, one that waits never begins."""
        self._waiting.clear()
        ended: list[BatchEvent] = []
        for sequence in list(self._running.values()):
            sequence.answer.interrupt()
            done = sequence.answer.done()
            self._engine.log_answer(done)
            ended.append((sequence.key, done))
            self._retire(sequence)
        return ended

    def run(self) -> Iterator[BatchEvent]:
        """Step until all are answered."""
        while len(self):
            yield from self.step()

    # ---- who comes in ----

    def _admit_waiting(self) -> list[BatchEvent]:
        while self._waiting and len(self._running) < self._most:
            key, request = next(iter(self._waiting.items()))
            if not self._make_room(self._size(request)):
                break  # the oldest waits for room, and no younger one passes it
            try:
                sequence = self._admit(key, request)
            except OutOfMemoryError as error:
                if self._left:
                    self._left.clear()
                elif self._running:
                    break  # until one of them has ended
                else:
                    del self._waiting[key]
                    return [(key, error)]
                continue
            del self._waiting[key]
            self._running[key] = sequence
        return []

    def _size(self, request: Request) -> int:
        """Tokens that a request's cache must be able to hold."""
        context, wanted = self._engine.context, request.params.max_tokens
        return context if wanted is None else min(context, len(request.prompt_ids) + wanted)

    def _make_room(self, size: int) -> bool:
        """Whether a cache of `size` tokens fits; rows of finished sequences give way to it, the oldest first."""
        running = sum(sequence.cache.capacity for sequence in self._running.values())
        if running + size > self._tokens:
            return False
        while running + size + sum(kept.cache.capacity for kept in self._left) > self._tokens:
            del self._left[0]
        return True

    def _admit(self, key: Hashable, request: Request) -> _BatchSequence:
        engine = self._engine
        cache = self._cache(self._size(request))
        answer = Sequence(request, engine.tokenizer, end_tokens=engine.eos_token_ids, context=engine.context, cached=0)
        return _BatchSequence(key, answer, cache)

    def _cache(self, tokens: int) -> LatentKVCache:
        model = self._engine.model
        return with_room(
            lambda: LatentKVCache(model.config, tokens, dtype=model.dtype, device=model.device),
            self._engine.experts,
            f"one more answer of {tokens:,} tokens",
        )

    # ---- what a step does ----

    def _reading(self) -> list[ScheduledChunk]:
        """Pieces of prompts, the oldest first. One that begins like another waits until it can copy that one's rows."""
        pieces: list[ScheduledChunk] = []
        for sequence in self._running.values():
            room = self._piece - sum(len(work.ids) for work in pieces)
            if room <= 0:
                break
            if not sequence.unread:
                continue
            if not sequence.answer.request.echo:
                self._copy_prefix(sequence)
                shared = max((common_prefix(work.sequence.prompt, sequence.prompt) for work in pieces), default=0)
                if shared - len(sequence.ids) >= _WORTH_WAITING:
                    continue
            pieces.append(ScheduledChunk(sequence, sequence.unread[:room], reads=True))
        return pieces

    def _answering(self) -> list[ScheduledChunk]:
        begun = [sequence for sequence in self._running.values() if not sequence.unread]
        return [ScheduledChunk(sequence, sequence.answer.token_ids[-1:], reads=False) for sequence in begun]

    def _copy_prefix(self, sequence: _BatchSequence) -> None:
        """Copy the longest known beginning of a prompt that is not begun; its last token is always read."""
        if len(sequence.ids) > sequence.answer.cached:
            return
        wanted = sequence.prompt[:-1]
        others = [*(other for other in self._running.values() if other is not sequence), *self._left]
        count, best = max(
            ((common_prefix(other.ids, wanted), other) for other in others), key=lambda pair: pair[0], default=(0, None)
        )
        if best is not None and count > len(sequence.ids):
            sequence.cache.copy_rows(best.cache, count)
            sequence.ids, sequence.answer.cached = list(wanted[:count]), count

    def _forward(self, work: abc.Sequence[ScheduledChunk]) -> tuple[abc.Sequence[torch.Tensor], torch.Tensor]:
        """Of each piece of work hidden states, and logits (B, vocabulary) behind its last token.

        The states are those of all its tokens (T, D) where a prompt is echoed, else of the last one (1, D).
        """
        model = self._engine.model
        ids = [token_id for some in work for token_id in some.ids]
        spans = [Span(some.sequence.cache, len(some.ids)) for some in work]
        echoes = any(some.sequence.answer.request.echo for some in work)
        with torch.inference_mode():
            hidden = model.forward(torch.tensor(ids, dtype=torch.long), spans, last_only=not echoes)
            rows = hidden.split([span.count if echoes else 1 for span in spans])
            return rows, model.logits(last_of_each(hidden, spans) if echoes else hidden)

    def _take(
        self, work: abc.Sequence[ScheduledChunk], states: abc.Sequence[torch.Tensor], logits: torch.Tensor
    ) -> list[BatchEvent]:
        """What became of each sequence."""
        events: list[BatchEvent] = []
        for some, rows, scores in zip(work, states, logits, strict=True):
            sequence = some.sequence
            sequence.ids += some.ids
            try:
                if some.reads:
                    events += self._told_of_reading(sequence, len(some.ids), rows)
                if not sequence.unread:
                    events += with_room(partial(self._advance, sequence, scores), None, "drawing a token")
            except DsliteError as error:
                self._running.pop(sequence.key, None)
                events.append((sequence.key, error))
        return events

    def _told_of_reading(self, sequence: _BatchSequence, count: int, hidden: torch.Tensor) -> list[BatchEvent]:
        """The last `count` tokens read, with the hidden states (T, D) that an echo wants."""
        answer, events = sequence.answer, []
        if answer.request.echo:
            events += list(self._engine.echo(answer, len(sequence.ids) - count, hidden))
        events.append(Prefilling(len(sequence.ids), len(sequence.prompt), answer.cached, answer.elapsed_s))
        if not sequence.unread:
            answer.begin()
        return [(sequence.key, event) for event in events]

    def _advance(self, sequence: _BatchSequence, logits: torch.Tensor) -> list[BatchEvent]:
        """Draw the next token, unless the answer is over already; see off a finished one. Raises NumericsError."""
        check_finite(logits)
        answer = sequence.answer
        events: list[Event] = []
        if answer.finish_reason is None:
            events += answer.push(logits)
        if answer.finish_reason is not None:
            done = answer.done()
            self._engine.log_answer(done)
            events.append(done)
            self._retire(sequence)
        return [(sequence.key, event) for event in events]

    # ---- who goes ----

    def _retire(self, sequence: _BatchSequence) -> None:
        """Keep the rows of finished sequences, the newest ones, up to one context of tokens."""
        self._running.pop(sequence.key, None)
        if not sequence.ids:
            return
        if sequence.cache.capacity > len(sequence.ids):
            try:
                kept = self._cache(len(sequence.ids))
            except OutOfMemoryError:
                return  # they would only have served others
            kept.copy_rows(sequence.cache, len(sequence.ids))
            sequence.cache = kept
        self._left.append(sequence)
        while sum(len(kept.ids) for kept in self._left) > self._engine.context:
            del self._left[0]

    def _recover_from_oom(self, work: abc.Sequence[ScheduledChunk], told: OutOfMemoryError) -> list[BatchEvent]:
        """Memory ran out in a step: give back what can be missed, so that the next one may go through.

        Finished sequences go first, then slots of experts, then the length of a piece; at last the youngest answer.
        """
        for some in work:
            some.sequence.cache.truncate(len(some.sequence.ids))  # the rows may be there, but nobody knows their scores
        tokens = sum(len(some.ids) for some in work if some.reads)
        if self._left:
            self._left.clear()
        elif self._engine.experts is not None and self._engine.experts.give_back():
            pass
        elif tokens > 1:
            self._piece = min(self._piece, tokens) // 2
        else:
            youngest = next(reversed(self._running))
            del self._running[youngest]
            return [(youngest, told)]
        return []
