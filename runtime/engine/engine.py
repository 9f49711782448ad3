"""The engine: prompt ids in, events out.

An answer is a generator. Whoever drives it gets progress several times a second, and may cancel between any two tokens
and, while the prompt is read, between layers. The cache keeps the last conversation: a prompt that begins like it is
read only from where it differs.
"""

# T tokens of a chunk  D hidden

import math
from collections import abc
from collections.abc import Callable, Generator, Iterator
from functools import partial
from threading import Event as Flag

import torch
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.moe import MoE
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.branch_cache import BranchCache, common_prefix
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.device import is_out_of_memory
from dslite.runtime.engine.request_log import RequestLog
from dslite.runtime.engine.sampling import check_finite
from dslite.runtime.engine.sequence import Request, Sequence
from dslite.runtime.errors import ContextFullError, NumericsError, OutOfMemoryError, UsageError
from dslite.runtime.events import Event, Prefilling
from dslite.runtime.planning.footprint import LOGIT_ROWS
from dslite.runtime.system.memory import peak_rss
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights.experts import with_room
from dslite.runtime.weights.loader import expert_cache

PREFILL_CHUNK = 2048
_PROGRESS_S = 0.1


__all__ = ["Engine", "Request"]


class Engine:
    """One model, one cache, one answer at a time."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        context: int,
        eos_token_ids: abc.Sequence[int] | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        saved: Callable[[], LatentDiskCache] | None = None,
        memory_left: int | None = None,
    ) -> None:
        """`context` is the most tokens that prompt and answer may have together; `saved` opens the rows on disk.

        `memory_left`: bytes that the user's limit leaves for more than this one conversation; None: no limit.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.prefill_chunk = prefill_chunk
        self.memory_left = memory_left
        self.experts = expert_cache(model)
        self.log_answer = RequestLog(None if self.experts is None else self.experts.stats)
        self.cache = with_room(
            lambda: LatentKVCache(model.config, context, dtype=model.dtype, device=model.device),
            self.experts,
            f"a context of {context:,} tokens",
        )
        self.eos_token_ids = frozenset(model.config.eos_token_ids if eos_token_ids is None else eos_token_ids)
        self._cached_ids: list[int] = []
        self._saved = saved
        self._kept: tuple[str, tuple[int, ...]] | None = None  # the conversation and its tokens as the disk has them
        self._shelf = BranchCache(self.cache.nbytes // 2)  # so that branches never double the memory

    @property
    def context(self) -> int:
        return self.cache.capacity

    def generate(self, request: Request, cancel: Flag | None = None) -> Iterator[Event]:
        """Answer a request: Prefilling and Token events, one Done at the end.

        Raises ContextFullError for a prompt that does not fit, NumericsError where the network breaks.
        """
        self.check_fits(request)
        return self._answer(request, cancel or Flag())

    def check_fits(self, request: Request) -> None:
        """Raise ContextFullError for a prompt that leaves no room in the context, UsageError for an empty one."""
        count = len(request.prompt_ids)
        if not count:
            raise UsageError("the prompt is empty: there is nothing to go on from", "write one")
        if count + (request.params.max_tokens != 0) > self.context:
            raise ContextFullError(
                f"the prompt has {count:,} tokens, and the context holds {self.context:,}, the answer included",
                "shorten the prompt, or raise --ctx-size",
            )

    def memory(self) -> dict[str, int]:
        """Bytes: weights, cache in use, cache of one token, most host and GPU memory of this process so far."""
        per_token = kv_bytes_per_token(self.model.config, self.model.dtype)
        return {
            "weights_bytes": sum(math.prod(shape) for shape in parameter_shapes(self.model.config).values())
            * self.model.dtype.itemsize,
            "kv_bytes": self.cache.length * per_token,
            "kv_bytes_per_token": per_token,
            "peak_rss_bytes": peak_rss(),
            "peak_vram_bytes": torch.cuda.max_memory_allocated() if self.model.device.type == "cuda" else 0,
        }

    def expert_stats(self) -> dict[str, int]:
        """Slots on the compute device for each layer, and what they saved and cost."""
        if self.experts is not None:
            return self.experts.stats.summary()
        return {"slots": self.model.config.n_routed_experts, "hits": 0, "misses": 0, "bytes_moved": 0}

    def expert_uses(self) -> list[list[int]] | None:
        """How often tokens chose each expert of each MoE layer since `count_anew`; None on a GPU: it is not counted."""
        if self.model.device.type != "cpu":
            return None
        return [layer.mlp.uses.tolist() for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    def count_anew(self) -> None:
        """Begin to count the uses of experts from nothing."""
        for layer in self.model.layers:
            if isinstance(layer.mlp, MoE):
                layer.mlp.uses.zero_()

    @property
    def cached_ids(self) -> abc.Sequence[int]:
        """The tokens whose rows the cache holds."""
        return self._cached_ids

    def reuse(self, prompt_ids: abc.Sequence[int], *, most: int) -> int:
        """Make the cache hold as much as is known of the prompt's first `most` tokens; return how many.

        What it held behind them goes to the shelf: another branch, to which the conversation may return.
        """
        wanted = prompt_ids[:most]
        known = common_prefix(self._cached_ids, wanted)
        self._shelf.put(self._cached_ids, known, self.cache.rows(known, self.cache.length))
        self.cache.truncate(known)
        while (rows := self._shelf.take(wanted, known)) is not None:
            self.cache.put(rows)
            known = self.cache.length
        self._cached_ids = list(wanted[:known])
        return known

    def resume(self, key: str, prompt_ids: abc.Sequence[int]) -> int:
        """Take what is saved of a conversation, as far as the prompt begins like it; return how many are known."""
        known = self.reuse(prompt_ids, most=len(prompt_ids))
        if self._saved is not None:
            known = self._saved().load(key, prompt_ids, self.cache)
            self._cached_ids = list(prompt_ids[:known])
            self._kept = (key, tuple(self._cached_ids))
        return known

    def keep(self, key: str) -> None:
        """Save the cached rows as those of a conversation, unless they are saved already."""
        now = (key, tuple(self._cached_ids))
        if self._saved is not None and self._kept != now and self._saved().save(key, self._cached_ids, self.cache):
            self._kept = now

    def forget(self) -> None:
        """Empty the cache and the shelf."""
        self.cache.truncate(0)
        self._shelf.clear()
        self._cached_ids.clear()

    def steps(self, token_ids: abc.Sequence[int], *, last_only: bool = True) -> Generator[int, None, Tensor]:
        """Run tokens behind the cached ones: yields the layers done, returns hidden (1, D) of the last, or (T, D).

        Where memory runs out, slots of experts are given back, the tokens are run in halves, and later prompts too.
        Raises OutOfMemoryError when that does not help; the cache holds what it held, or the first halves more.
        """
        try:
            return (yield from self._steps_at_once(token_ids, last_only))
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            told = OutOfMemoryError.of(error, f"{len(token_ids):,} tokens at once")
        # Outside of the handler: the error's traceback would keep the memory of what failed.
        given_back = self.experts is not None and self.experts.give_back()
        half = len(token_ids) // 2
        if half:
            self.prefill_chunk = max(1, min(self.prefill_chunk, half))
            first = yield from self.steps(token_ids[:half], last_only=last_only)
            second = yield from self.steps(token_ids[half:], last_only=last_only)
            if last_only:
                return second
            return with_room(lambda: torch.cat([first, second]), self.experts, f"{len(token_ids):,} tokens at once")
        if not given_back:
            raise told
        return (yield from self.steps(token_ids, last_only=last_only))

    def _steps_at_once(self, token_ids: abc.Sequence[int], last_only: bool) -> Generator[int, None, Tensor]:
        with torch.inference_mode():
            ids = torch.tensor(token_ids, dtype=torch.long)
            steps = self.model.steps(ids, [Span(self.cache, len(token_ids))], last_only=last_only)
        while True:
            # Not held over a yield: inference mode belongs to the thread, not to this generator.
            with torch.inference_mode():
                try:
                    done = next(steps)
                except StopIteration as end:
                    self._cached_ids += token_ids
                    hidden: Tensor = end.value
                    return hidden
            yield done

    def forward(self, token_ids: abc.Sequence[int], *, last_only: bool = True) -> Tensor:
        """`steps` at once."""
        steps = self.steps(token_ids, last_only=last_only)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                hidden: Tensor = end.value
                return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Finite logits (T, vocabulary), float32, of hidden (T, D). Raises NumericsError, and forgets the cache."""
        with torch.inference_mode():
            logits = with_room(lambda: self.model.logits(hidden), self.experts, f"the logits of {len(hidden)} tokens")
        try:
            with_room(lambda: check_finite(logits), self.experts, f"the logits of {len(hidden)} tokens")
        except NumericsError:
            self.forget()
            raise
        return logits

    def _answer(self, request: Request, cancel: Flag) -> Iterator[Event]:
        most = 0 if request.echo else len(request.prompt_ids) - 1  # the last token's logits are wanted
        cached = self.reuse(request.prompt_ids, most=most)
        sequence = Sequence(request, self.tokenizer, end_tokens=self.eos_token_ids, context=self.context, cached=cached)
        hidden = yield from self._prefill(sequence, cancel)
        if hidden is not None:
            sequence.begin()
        while hidden is not None and sequence.finish_reason is None:
            logits = self.logits(hidden)[0]
            # Not tried again: a seed's next number may be drawn already.
            yield from with_room(partial(sequence.push, logits), None, "drawing a token")
            if cancel.is_set():
                sequence.interrupt()
            if sequence.finish_reason is None:
                hidden = self.forward([sequence.token_ids[-1]])
        done = sequence.done()
        self.log_answer(done)
        yield done

    def _prefill(self, sequence: Sequence, cancel: Flag) -> Generator[Event, None, Tensor | None]:
        """Read what is not cached of the prompt; return the last hidden state (1, D), or None when cancelled."""
        ids, layers = sequence.request.prompt_ids, len(self.model.layers)
        told = 0.0
        rows: Tensor | None = None
        start = sequence.cached
        while start < len(ids):
            chunk = ids[start : start + self.prefill_chunk]
            steps = self.steps(chunk, last_only=not sequence.request.echo)
            while True:
                if cancel.is_set():
                    sequence.interrupt()
                    return None
                try:
                    done = next(steps)
                except StopIteration as end:
                    rows = end.value
                    break
                if sequence.elapsed_s - told >= _PROGRESS_S:
                    told = sequence.elapsed_s
                    yield Prefilling(start + len(chunk) * done / layers, len(ids), sequence.cached, told)
            if sequence.request.echo:
                assert rows is not None
                yield from self.echo(sequence, start, rows)
            start += len(chunk)
        yield Prefilling(len(ids), len(ids), sequence.cached, sequence.elapsed_s)
        return None if rows is None else rows[-1:]  # of an echo all were wanted

    def echo(self, sequence: Sequence, start: int, rows: Tensor) -> Iterator[Event]:
        """Tokens of the prompt that the hidden rows of a chunk predict, and the very first, which nothing predicts."""
        ids = sequence.request.prompt_ids
        if start == 0:
            yield from sequence.echo(ids[:1], None)
        wanted = ids[start + 1 : start + 1 + len(rows)]
        if sequence.request.logprobs is None:
            yield from sequence.echo(wanted, None)
            return
        for place in range(0, len(wanted), LOGIT_ROWS):
            some = wanted[place : place + LOGIT_ROWS]
            yield from sequence.echo(some, self.logits(rows[place : place + len(some)]))
