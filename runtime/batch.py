"""Many answers at once over one network.

Each sequence has its own cache and its own draft. A step reads a piece of one waiting prompt and makes one token of
every running sequence, so that the weights which one token needs are read once for all; sequences join and leave
between any two steps. A prompt that begins like one whose rows are at hand copies them and computes only the rest.
"""

# B running sequences  D hidden

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from dslite.model.attention import Span
from dslite.runtime.branches import common_prefix
from dslite.runtime.draft import Draft, Request
from dslite.runtime.engine import Engine
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Event, Prefilling
from dslite.runtime.kv_cache import LatentKVCache
from dslite.runtime.sampling import check_finite

DEFAULT_BATCH = 8
_PIECE = 512  # prompt tokens read in one step: what the others wait for


@dataclass
class _Sequence:
    """One answer of the batch. `ids` are the tokens whose rows are in the cache."""

    key: Hashable
    draft: Draft
    cache: LatentKVCache
    ids: list[int] = field(default_factory=list)

    @property
    def unread(self) -> Sequence[int]:
        """Tokens of the prompt that are still to be read."""
        return self.draft.request.prompt_ids[len(self.ids) :]


Happening = tuple[Hashable, Event | DsliteError]


class Batch:
    """Requests join under a key of the caller's; each step returns what happened, as (key, event or error)."""

    def __init__(self, engine: Engine, *, most: int = DEFAULT_BATCH, tokens: int | None = None) -> None:
        """`most` sequences run together; further ones wait their turn.

        `tokens` is the most that the caches of all of them take, finished ones included; None: a context for each.
        """
        self._engine = engine
        self._most = most
        self._tokens = max(engine.context, most * engine.context if tokens is None else tokens)
        self._waiting: OrderedDict[Hashable, Request] = OrderedDict()
        self._running: dict[Hashable, _Sequence] = {}
        self._left: list[_Sequence] = []  # finished ones, oldest first: their rows may serve those to come

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
            self._see_off(self._running[key])

    def step(self) -> list[Happening]:
        """Read a piece of a prompt, and make a token of every answer that has begun."""
        while self._waiting and len(self._running) < self._most:
            key, request = next(iter(self._waiting.items()))
            if not self._make_room(self._size(request)):
                break  # the oldest waits for room, and no younger one passes it
            del self._waiting[key]
            self._running[key] = self._admit(key, request)
        reading = next((sequence for sequence in self._running.values() if sequence.unread), None)
        events = self._read(reading) if reading is not None else []
        answering = [sequence for sequence in self._running.values() if not sequence.unread and sequence is not reading]
        return events + self._decode(answering) if answering else events

    def interrupt(self) -> list[Happening]:
        """End all: an answer that has begun keeps what came, one that waits never begins."""
        self._waiting.clear()
        ended: list[Happening] = []
        for sequence in list(self._running.values()):
            sequence.draft.interrupt()
            ended.append((sequence.key, sequence.draft.done()))
            self._see_off(sequence)
        return ended

    def run(self) -> Iterator[Happening]:
        """Step until all are answered."""
        while len(self):
            yield from self.step()

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

    def _admit(self, key: Hashable, request: Request) -> _Sequence:
        engine, ids = self._engine, request.prompt_ids
        cache = self._cache(self._size(request))
        known = 0 if request.echo else self._copy_prefix(cache, ids)
        draft = Draft(request, engine.tokenizer, end_tokens=engine.eos_token_ids, context=engine.context, cached=known)
        return _Sequence(key, draft, cache, list(ids[:known]))

    def _copy_prefix(self, cache: LatentKVCache, ids: Sequence[int]) -> int:
        """Copy the longest known beginning of a prompt into its cache; its last token is always read."""
        lengths = [(common_prefix(known.ids, ids[:-1]), known) for known in (*self._running.values(), *self._left)]
        count, best = max(lengths, key=lambda pair: pair[0], default=(0, None))
        if best is not None:
            cache.copy_rows(best.cache, count)
        return count

    def _read(self, sequence: _Sequence) -> list[Happening]:
        """One piece of a prompt; behind the last, the first token of the answer."""
        draft, total = sequence.draft, len(sequence.draft.request.prompt_ids)
        if not sequence.ids and not draft.request.echo:
            known = self._copy_prefix(sequence.cache, draft.request.prompt_ids)  # rows made since it was admitted
            sequence.ids, draft.cached = list(draft.request.prompt_ids[:known]), known
        piece = list(sequence.unread[:_PIECE])
        start = len(sequence.ids)
        hidden = self._forward(piece, [Span(sequence.cache, len(piece))])
        sequence.ids += piece
        events: list[Happening] = []
        try:
            if draft.request.echo:
                events += [(sequence.key, event) for event in self._engine.echo(draft, start, hidden)]
            events.append((sequence.key, Prefilling(len(sequence.ids), total, draft.cached, draft.elapsed_s)))
            if not sequence.unread:
                draft.begin()
                events += self._advance(sequence, self._logits(hidden[-1:])[0])
        except DsliteError as error:
            events += self._fail(sequence, error)
        return events

    def _decode(self, sequences: list[_Sequence]) -> list[Happening]:
        """One token of every sequence."""
        ids = [sequence.draft.token_ids[-1] for sequence in sequences]
        hidden = self._forward(ids, [Span(sequence.cache, 1) for sequence in sequences])
        logits = self._logits(hidden, check=False)
        events: list[Happening] = []
        for sequence, token_id, row in zip(sequences, ids, logits, strict=True):
            sequence.ids.append(token_id)
            try:
                check_finite(row)
                events += self._advance(sequence, row)
            except DsliteError as error:
                events += self._fail(sequence, error)
        return events

    def _advance(self, sequence: _Sequence, logits: torch.Tensor) -> list[Happening]:
        """Draw the next token, unless the answer is over already; see off a finished one."""
        draft = sequence.draft
        events: list[Event] = []
        if draft.finish_reason is None:
            events += draft.push(logits)
        if draft.finish_reason is not None:
            events.append(draft.done())
            self._see_off(sequence)
        return [(sequence.key, event) for event in events]

    def _see_off(self, sequence: _Sequence) -> None:
        """Keep the rows of finished sequences, the newest ones, up to one context of tokens."""
        self._running.pop(sequence.key, None)
        if not sequence.ids:
            return
        if sequence.cache.capacity > len(sequence.ids):
            kept = self._cache(len(sequence.ids))
            kept.copy_rows(sequence.cache, len(sequence.ids))
            sequence.cache = kept
        self._left.append(sequence)
        while sum(len(kept.ids) for kept in self._left) > self._engine.context:
            del self._left[0]

    def _cache(self, tokens: int) -> LatentKVCache:
        model = self._engine.model
        return LatentKVCache(model.config, tokens, dtype=model.dtype, device=model.device)

    def _fail(self, sequence: _Sequence, error: DsliteError) -> list[Happening]:
        self._running.pop(sequence.key, None)
        return [(sequence.key, error)]

    def _forward(self, ids: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        with torch.inference_mode():
            return self._engine.model.forward(torch.tensor(ids, dtype=torch.long), spans)

    def _logits(self, hidden: torch.Tensor, *, check: bool = True) -> torch.Tensor:
        with torch.inference_mode():
            logits = self._engine.model.logits(hidden)
        if check:
            check_finite(logits)
        return logits
