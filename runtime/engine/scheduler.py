"""The scheduler: requests in, events out, one loop for one sequence or many.

A step admits requests, runs one pass of the network (a chunk of the prompts that are not computed yet, and one token of
every sequence that decodes, so that weights are read once for all), draws tokens, and retires what has ended. Requests
are added and removed between any two steps.

A sequence takes memory for what it holds. When the caches of all together reach their budget, entries of the prefix
cache are evicted; then the youngest sequence is preempted: it gives its cache back, waits, and computes it again.
"""

# T tokens of a sequence  D hidden

from collections import OrderedDict, abc
from dataclasses import dataclass
from functools import partial
from threading import Event as Flag

import torch
from torch import Tensor

from dslite.model.attention import Span
from dslite.runtime.cache.branch_cache import common_prefix
from dslite.runtime.cache.latent_cache import grows_on, tokens_that_fit
from dslite.runtime.cache.prefix_cache import CachedTokens
from dslite.runtime.engine.core import EngineCore
from dslite.runtime.engine.device_sampling import DAMAGED
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling import check_finite, not_finite
from dslite.runtime.engine.sequence import Sequence
from dslite.runtime.errors import DsliteError, NumericsError, OutOfMemoryError
from dslite.runtime.events import Event, Prefilling
from dslite.runtime.memory import is_out_of_memory, with_room
from dslite.runtime.planning.hardware import free_memory

DEFAULT_SEQUENCES = 16  # the most tokens that the compiled kernels of a CPU multiply at once
SHARED_CHUNK = 512  # prompt tokens of a pass beside other sequences: what these wait for
_SHARE = 0.5  # of the memory that is free once the weights are loaded; the rest is for workspace and other programs
_WORTH_WAITING = 16  # tokens of a common prefix; a shorter one is computed twice rather than waited for
_PROGRESS_S = 0.1

BatchEvent = tuple[abc.Hashable, Event | DsliteError]
OnProgress = abc.Callable[[abc.Hashable, Prefilling], None]


class _Cancelled(Exception):
    """Every sequence of a pass was cancelled between two of its layers."""


@dataclass(eq=False)
class _Entry:
    """A request, and once it is admitted its sequence and the latent cache that it fills."""

    key: abc.Hashable
    request: Request
    cancel: Flag | None = None
    sequence: Sequence | None = None
    cached: CachedTokens | None = None  # None while it waits
    decodes: bool = False  # its prompt was read, and the first token may have been drawn
    reported_s: float = 0.0  # when progress was reported last

    @property
    def tokens(self) -> abc.Sequence[int]:
        """All tokens so far: the prompt, and the answer with the token that was drawn last."""
        drawn = [] if self.sequence is None else self.sequence.token_ids
        return [*self.request.prompt_ids, *drawn]

    @property
    def length(self) -> int:
        return len(self.request.prompt_ids) + (0 if self.sequence is None else len(self.sequence.token_ids))

    @property
    def cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.is_set()


@dataclass(frozen=True)
class ScheduledChunk:
    """Tokens of a sequence that run in a pass: a piece of its prompt, or the token that was drawn last."""

    entry: _Entry
    sequence: Sequence
    cached: CachedTokens
    ids: abc.Sequence[int]
    prefills: bool

    @property
    def last(self) -> bool:
        """Whether all tokens are computed after this chunk, so that the next one can be drawn."""
        return len(self.cached.ids) + len(self.ids) == self.entry.length


def cache_budget(core: EngineCore, max_sequences: int) -> int:
    """Tokens that all latent caches of a scheduler may hold: what memory allows, one context at least."""
    config, dtype, device = core.model.config, core.model.dtype, core.model.device
    free = int(free_memory(device.type) * _SHARE)
    if core.memory_left is not None:
        free = min(free, core.memory_left)
    fit = tokens_that_fit(free, config, core.context, dtype, grows=grows_on(device))
    return max(core.context, min(max_sequences * core.context, fit))


class Scheduler:
    """Requests are added under a key; each step returns (key, event or error) of what happened."""

    def __init__(
        self,
        core: EngineCore,
        *,
        max_sequences: int = DEFAULT_SEQUENCES,
        max_tokens: int | None = None,
        chunk: int | None = SHARED_CHUNK,
        on_progress: OnProgress | None = None,
    ) -> None:
        """`max_sequences` run together, further ones wait in order.

        `max_tokens` bounds what all latent caches hold together; None: as `cache_budget` says. `chunk` is the most
        prompt tokens of a pass; None: as many as the runner takes. `on_progress` is called between layers of a prefill.
        """
        self._core = core
        self._max_sequences = max_sequences
        self._max_tokens = cache_budget(core, max_sequences) if max_tokens is None else max(core.context, max_tokens)
        self._chunk = chunk
        self._on_progress = on_progress
        self._waiting: OrderedDict[abc.Hashable, _Entry] = OrderedDict()
        self._running: dict[abc.Hashable, _Entry] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> int:
        """Sequences that hold a cache."""
        return len(self._running)

    def add(self, key: abc.Hashable, request: Request, cancel: Flag | None = None) -> None:
        """Take a request; it ends as interrupted once `cancel` is set. Raises ContextFullError, UsageError."""
        self._core.check_fits(request)
        self._waiting[key] = _Entry(key, request, cancel)

    def remove(self, key: abc.Hashable) -> None:
        """Drop a request without an event; what was computed of it stays in the prefix cache."""
        self._waiting.pop(key, None)
        if (entry := self._running.get(key)) is not None:
            self._retire(entry)

    def interrupt(self) -> list[BatchEvent]:
        """End all: a sequence that has begun keeps what came, one that never ran is dropped."""
        begun = [entry for entry in (*self._running.values(), *self._waiting.values()) if entry.sequence is not None]
        self._waiting.clear()
        return [self._end(entry) for entry in begun]

    def run(self) -> abc.Iterator[BatchEvent]:
        """Step until all requests are answered."""
        while len(self):
            yield from self.step()

    def step(self) -> list[BatchEvent]:
        """Run one pass; returns what came of it."""
        events: list[BatchEvent] = []
        for entry in (*self._running.values(), *self._waiting.values()):
            if entry.cancelled:
                entry.sequence = entry.sequence or self._core.new_sequence(entry.request, cached=0)
                events.append(self._end(entry))
        events += self._admit()
        chunks = self._schedule()
        if not chunks:
            return events
        try:
            states, logits = self._run(chunks)
        except _Cancelled:
            return [*events, *(self._end(chunk.entry) for chunk in chunks)]
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            short = OutOfMemoryError.of(error, _amount(chunks))
        else:
            return events + self._take(chunks, states, logits)
        # Outside of the handler: the error's traceback would keep the memory of what failed.
        return events + self._recover_from_oom(chunks, short)

    # ---- admission ----

    def _admit(self) -> list[BatchEvent]:
        """Give waiting requests a cache, the oldest first; none passes an older one that waits for memory."""
        while self._waiting and len(self._running) < self._max_sequences:
            entry = next(iter(self._waiting.values()))
            if not self._fits(entry):
                break
            # The last token always runs: its logits are wanted.
            known = [] if entry.request.echo else entry.tokens[:-1]
            try:
                cached = self._core.prefix_cache.acquire(known, self._caches())
            except OutOfMemoryError as error:
                if self._core.prefix_cache.evict(drop=True):
                    continue
                if self._running:
                    break  # until one of them has ended
                del self._waiting[entry.key]
                return [(entry.key, error)]
            entry.cached = cached
            if entry.sequence is None:
                entry.sequence = self._core.new_sequence(entry.request, cached=len(cached.ids))
            self._running[entry.key] = self._waiting.pop(entry.key)
        return []

    def _caches(self) -> list[CachedTokens]:
        return [entry.cached for entry in self._running.values() if entry.cached is not None]

    def _fits(self, entry: _Entry) -> bool:
        """Whether what a request has so far, and one more chunk of an answer, fits beside the running sequences."""
        if not self._running:
            return True
        return sum(running.length for running in self._running.values()) + entry.length <= self._max_tokens

    # ---- what runs in a pass ----

    def _schedule(self) -> list[ScheduledChunk]:
        """The chunks of the next pass. Where their tokens exceed the budget, memory is taken from others first."""
        prefix_cache = self._core.prefix_cache
        while True:
            chunks = [*self._prefill_chunks(), *self._decode_chunks()]
            wanted = sum(len(cached.ids) for cached in self._caches()) + sum(len(chunk.ids) for chunk in chunks)
            while wanted + prefix_cache.tokens > self._max_tokens and prefix_cache.evict():
                pass
            if wanted + prefix_cache.tokens <= self._max_tokens or not self._preempt():
                return chunks

    def _prefill_chunks(self) -> list[ScheduledChunk]:
        """Chunks of what is not computed, the oldest sequence first.

        A prompt that begins like one that is being read waits until it can copy that one's entries.
        """
        limit = self._core.runner.prefill_chunk
        room = limit if self._chunk is None else min(self._chunk, limit)
        chunks: list[ScheduledChunk] = []
        for entry in self._running.values():
            if room <= 0:
                break
            if not self._prefills(entry):
                continue
            sequence, cached = _admitted(entry)
            if not entry.request.echo:
                self._copy_prefix(entry, cached)
                shared = max((common_prefix(chunk.entry.tokens, entry.tokens) for chunk in chunks), default=0)
                if shared - len(cached.ids) >= _WORTH_WAITING:
                    continue
            ids = entry.tokens[len(cached.ids) :][:room]
            room -= len(ids)
            chunks.append(ScheduledChunk(entry, sequence, cached, ids, prefills=True))
        return chunks

    def _prefills(self, entry: _Entry) -> bool:
        _, cached = _admitted(entry)
        return not entry.decodes or entry.length - len(cached.ids) > 1

    def _decode_chunks(self) -> list[ScheduledChunk]:
        decoding = [entry for entry in self._running.values() if not self._prefills(entry)]
        return [ScheduledChunk(entry, *_admitted(entry), _drawn(entry), prefills=False) for entry in decoding]

    def _copy_prefix(self, entry: _Entry, cached: CachedTokens) -> None:
        """Copy the prefix that another running sequence has computed meanwhile, as long as this one has not begun."""
        sequence, _ = _admitted(entry)
        if len(cached.ids) > sequence.cached or entry.decodes:
            return
        others = [other for other in self._caches() if other is not cached]
        if self._core.prefix_cache.copy_longest(others, entry.tokens[:-1], cached):
            sequence.cached = len(cached.ids)

    def _run(self, chunks: abc.Sequence[ScheduledChunk]) -> tuple[abc.Sequence[Tensor], Tensor]:
        """Run a pass: of each chunk its hidden states, and logits (chunks, vocabulary) behind its last token."""
        prefills = any(chunk.prefills for chunk in chunks)
        return self._core.runner.run(
            [token_id for chunk in chunks for token_id in chunk.ids],
            [Span(chunk.cached.cache, len(chunk.ids)) for chunk in chunks],
            all_hidden=any(chunk.entry.request.echo for chunk in chunks),
            on_layer=partial(self._between_layers, chunks if prefills else []),
        )

    def _between_layers(self, chunks: abc.Sequence[ScheduledChunk], done: int) -> None:
        """Report the progress of prompts, and leave the pass where all its sequences are cancelled."""
        if chunks and all(chunk.entry.cancelled for chunk in chunks):
            raise _Cancelled
        if self._on_progress is None:
            return
        share = done / len(self._core.model.layers)
        for chunk in chunks:
            if chunk.prefills and not chunk.entry.decodes and _is_due(chunk.entry, chunk.sequence):
                count = len(chunk.cached.ids) + len(chunk.ids) * share
                self._on_progress(chunk.entry.key, _progress(chunk, count))

    # ---- what came of it ----

    def _take(
        self, chunks: abc.Sequence[ScheduledChunk], states: abc.Sequence[Tensor], logits: Tensor
    ) -> list[BatchEvent]:
        """Advance every sequence of a pass. A failure ends that sequence alone."""
        events: list[BatchEvent] = []
        if any(chunk.prefills for chunk in chunks):
            self._core.runner.prefill_went_through()
        drawn = self._draw(chunks, logits)
        for chunk, hidden, scores, token in zip(chunks, states, logits, drawn, strict=True):
            draws, start = chunk.last, len(chunk.cached.ids)
            chunk.cached.ids += chunk.ids
            try:
                made = self._prefilled(chunk, start, hidden, draws) if not chunk.entry.decodes else []
                if draws:
                    made += self._advance(chunk.sequence, scores, token)
            except NumericsError as error:
                self._running.pop(chunk.entry.key)
                self._core.prefix_cache.clear()  # it may be the cached entries that are not finite
                events.append((chunk.entry.key, error))
                continue
            except DsliteError as error:
                self._retire(chunk.entry)
                events.append((chunk.entry.key, error))
                continue
            events += [(chunk.entry.key, event) for event in made]
            if chunk.sequence.finish_reason is not None:
                events.append(self._end(chunk.entry))
        return events

    def _prefilled(self, chunk: ScheduledChunk, start: int, hidden: Tensor, last: bool) -> list[Event]:
        """Events of prompt tokens that were read; hidden (T, D) of all of them for an echo."""
        sequence = chunk.sequence
        events: list[Event] = []
        if chunk.entry.request.echo:
            events += self._core.echo(sequence, start, hidden)
        if last or self._on_progress is None or _is_due(chunk.entry, sequence):
            events.append(_progress(chunk, len(chunk.cached.ids)))
        if last:
            chunk.entry.decodes = True
            sequence.begin()
        return events

    def _draw(self, chunks: abc.Sequence[ScheduledChunk], logits: Tensor) -> abc.Sequence[int | None]:
        """The tokens that the device draws from logits (chunks, vocabulary); None where none is due, or the host draws.

        A piece of a prompt that is not its last one waits for nothing.
        """
        due = [place for place, chunk in enumerate(chunks) if chunk.last]
        tokens: list[int | None] = [None] * len(chunks)
        if not due:
            return tokens
        rows = logits if len(due) == len(chunks) else torch.stack([logits[place] for place in due])
        try:
            sequences = [chunks[place].sequence for place in due]
            drawn = self._core.runner.draw(rows, sequences, self._core.tokenizer.vocab_size)
        except OutOfMemoryError:
            return tokens  # one after the other takes less
        for place, token in zip(due, drawn or (), strict=False):
            tokens[place] = token
        return tokens

    def _advance(self, sequence: Sequence, logits: Tensor, drawn: int | None) -> list[Event]:
        """Take the next token, drawn already or from logits (vocabulary,), unless the answer is over.

        Raises NumericsError.
        """
        if drawn is None:
            with_room(partial(check_finite, logits), self._core.experts, "the logits of a token")
        elif drawn == DAMAGED:
            raise not_finite()
        if sequence.finish_reason is not None:
            return []
        # Not tried again: a seed's next number may be drawn already.
        return list(with_room(partial(sequence.push, logits, drawn), None, "drawing a token"))

    def _end(self, entry: _Entry) -> BatchEvent:
        """The end of an answer, interrupted where it is not over."""
        assert entry.sequence is not None
        entry.sequence.interrupt()
        done = entry.sequence.done()
        self._core.log_answer(done)
        self._waiting.pop(entry.key, None)
        self._retire(entry)
        return entry.key, done

    def _retire(self, entry: _Entry) -> None:
        """Leave the cache of a sequence to the prefix cache."""
        self._running.pop(entry.key, None)
        if entry.cached is not None:
            self._core.prefix_cache.release(entry.cached)
            entry.cached = None

    # ---- memory ----

    def _preempt(self) -> bool:
        """Take the cache of the youngest sequence, which computes it again later. False where only one runs.

        A sequence that still echoes its prompt keeps it: its events would be sent twice.
        """
        able = [entry for entry in self._running.values() if entry.decodes or not entry.request.echo]
        if len(self._running) < 2 or not able:
            return False
        youngest = able[-1]
        del self._running[youngest.key]
        youngest.cached = None
        self._waiting[youngest.key] = youngest
        self._waiting.move_to_end(youngest.key, last=False)
        return True

    def _recover_from_oom(self, chunks: abc.Sequence[ScheduledChunk], short: OutOfMemoryError) -> list[BatchEvent]:
        """A pass ran out of memory: free some for the next one; at last the youngest sequence ends with the error."""
        for chunk in chunks:
            chunk.cached.cache.truncate(len(chunk.cached.ids))  # entries without known logits are of no use
        prefilled = sum(len(chunk.ids) for chunk in chunks if chunk.prefills)
        if self._core.runner.make_room(self._core.prefix_cache, prefilled):
            return []
        youngest = next(reversed(self._running.values()))
        self._retire(youngest)
        return [(youngest.key, short)]


def _admitted(entry: _Entry) -> tuple[Sequence, CachedTokens]:
    """The sequence and the cache of an entry that runs."""
    assert entry.sequence is not None
    assert entry.cached is not None
    return entry.sequence, entry.cached


def _drawn(entry: _Entry) -> abc.Sequence[int]:
    """The token that was drawn last."""
    assert entry.sequence is not None
    return entry.sequence.token_ids[-1:]


def _is_due(entry: _Entry, sequence: Sequence) -> bool:
    """Whether progress is to be reported again."""
    return sequence.elapsed_s - entry.reported_s >= _PROGRESS_S


def _progress(chunk: ScheduledChunk, count: float) -> Prefilling:
    """`count` tokens of a prompt are read."""
    chunk.entry.reported_s = chunk.sequence.elapsed_s
    total = len(chunk.entry.request.prompt_ids)
    return Prefilling(count, total, chunk.sequence.cached, chunk.entry.reported_s)


def _amount(chunks: abc.Sequence[ScheduledChunk]) -> str:
    """What a pass computes, for a message."""
    if len(chunks) > 1:
        return f"{len(chunks)} answers at once"
    return f"{len(chunks[0].ids):,} tokens at once"
