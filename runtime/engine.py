"""The engine: prompt ids in, events out.

An answer is a generator. Whoever drives it gets progress several times a second, and may cancel between any two tokens
and, while the prompt is read, between layers. The cache keeps the last conversation: a prompt that begins like it is
read only from where it differs.
"""

# T tokens of a chunk  D hidden

import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event as Flag

import torch
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.errors import ContextFullError
from dslite.runtime.events import Candidate, Done, Event, FinishReason, Prefilling, Timing, Token
from dslite.runtime.hardware import peak_rss
from dslite.runtime.kv_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.sampling import Sampler, Scores, check_finite, score
from dslite.runtime.sampling_params import SamplingParams
from dslite.runtime.tokenizer import StopTexts, StreamDecoder, Tokenizer

PREFILL_CHUNK = 2048
_LOGIT_ROWS = 64  # prompt positions scored at once: 64 × 102,400 × 4 bytes
_PROGRESS_S = 0.1


@dataclass(frozen=True)
class Request:
    """What to answer. `logprobs` K: each token's log-probability and the K best; `echo`: the prompt's tokens too."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    logprobs: int | None = None
    echo: bool = False


class Engine:
    """One model, one cache, one answer at a time."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, context: int, eos_token_ids: Sequence[int] | None = None
    ) -> None:
        """`context` is the most tokens that prompt and answer may have together."""
        self.model = model
        self.tokenizer = tokenizer
        self.cache = LatentKVCache(model.config, context, dtype=model.dtype, device=model.device)
        self.eos_token_ids = frozenset(model.config.eos_token_ids if eos_token_ids is None else eos_token_ids)
        self._cached_ids: list[int] = []

    @property
    def context(self) -> int:
        return self.cache.capacity

    def generate(self, request: Request, cancel: Flag | None = None) -> Iterator[Event]:
        """Answer a request: Prefilling and Token events, one Done at the end.

        Raises ContextFullError for a prompt that does not fit, NumericsError where the network breaks.
        """
        count = len(request.prompt_ids)
        if count + (request.params.max_tokens != 0) > self.context:
            raise ContextFullError(
                f"the prompt has {count:,} tokens, and the context holds {self.context:,}, the answer included",
                "shorten the prompt, or raise --ctx-size",
            )
        return _Answer(self, request, cancel or Flag()).run()

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
        return {"slots": self.model.config.n_routed_experts, "hits": 0, "misses": 0, "bytes_moved": 0}

    def reuse(self, prompt_ids: Sequence[int], *, most: int) -> int:
        """Keep the longest cached prefix of the prompt, at most `most` tokens; return its length."""
        common = 0
        for cached, wanted in zip(self._cached_ids, prompt_ids[:most], strict=False):
            if cached != wanted:
                break
            common += 1
        self.cache.truncate(common)
        del self._cached_ids[common:]
        return common

    def steps(self, token_ids: Sequence[int]) -> Generator[int, None, Tensor]:
        """Run tokens behind the cached ones: yields the layers done, returns hidden (T, D)."""
        with torch.inference_mode():
            ids = torch.tensor(token_ids, dtype=torch.long)
            steps = self.model.steps(ids, [Span(self.cache, len(token_ids))])
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

    def forward(self, token_ids: Sequence[int]) -> Tensor:
        """`steps` at once."""
        steps = self.steps(token_ids)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                hidden: Tensor = end.value
                return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Finite logits (T, vocabulary), float32, of hidden (T, D). Raises NumericsError, and forgets the cache."""
        with torch.inference_mode():
            logits = self.model.logits(hidden)
        try:
            check_finite(logits)
        except Exception:
            self.reuse([], most=0)
            raise
        return logits


class _Answer:
    """The making of one answer."""

    def __init__(self, engine: Engine, request: Request, cancel: Flag) -> None:
        self._engine = engine
        self._request = request
        self._cancel = cancel
        self._decoder = StreamDecoder(engine.tokenizer)
        self._stops = StopTexts(request.params.stop)
        self._ids: list[int] = []
        self._text: list[str] = []
        self._started = time.perf_counter()
        self._prefilled = self._first = 0.0
        self._cached = 0

    def run(self) -> Iterator[Event]:
        request, engine = self._request, self._engine
        most = 0 if request.echo else len(request.prompt_ids) - 1  # the last token's logits are wanted
        self._cached = engine.reuse(request.prompt_ids, most=most)
        hidden = yield from self._prefill()
        self._prefilled = time.perf_counter()
        if hidden is None:
            yield self._done("interrupted")
            return
        sampler = Sampler(request.params, request.prompt_ids, engine.tokenizer.vocab_size)
        yield from self._decode(hidden, sampler)

    def _prefill(self) -> Generator[Event, None, Tensor | None]:
        """Read the prompt; return the last token's hidden state (1, D), or None when cancelled."""
        ids, layers = self._request.prompt_ids, len(self._engine.model.layers)
        hidden: Tensor | None = None
        told = 0.0
        for start in range(self._cached, len(ids), PREFILL_CHUNK):
            chunk = ids[start : start + PREFILL_CHUNK]
            steps = self._engine.steps(chunk)
            while True:
                if self._cancel.is_set():
                    return None
                now = time.perf_counter()
                try:
                    done = next(steps)
                except StopIteration as end:
                    rows: Tensor = end.value
                    break
                if now - told >= _PROGRESS_S:
                    told = now
                    yield self._progress(start + len(chunk) * done / layers)
            if self._request.echo:
                yield from self._echo(start, rows)
            hidden = rows[-1:]
        yield self._progress(len(ids))
        return hidden

    def _progress(self, done: float) -> Prefilling:
        elapsed = time.perf_counter() - self._started
        return Prefilling(done=done, total=len(self._request.prompt_ids), cached=self._cached, elapsed_s=elapsed)

    def _echo(self, start: int, rows: Tensor) -> Iterator[Event]:
        """Tokens of the prompt that the hidden rows of a chunk predict, and the very first, which nothing predicts."""
        ids, k = self._request.prompt_ids, self._request.logprobs
        if start == 0:
            yield replace(self._token(ids[0], None, in_prompt=True), top=None if k is None else ())
        wanted = ids[start + 1 : start + 1 + len(rows)]
        if k is None:
            yield from (self._token(token_id, None, in_prompt=True) for token_id in wanted)
            return
        for place in range(0, len(wanted), _LOGIT_ROWS):
            some = wanted[place : place + _LOGIT_ROWS]
            logits = self._engine.logits(rows[place : place + len(some)])
            for token_id, scores in zip(some, score(logits, some, k), strict=True):
                yield self._token(token_id, scores, in_prompt=True)

    def _decode(self, hidden: Tensor, sampler: Sampler) -> Iterator[Event]:
        engine, params = self._engine, self._request.params
        while True:
            if params.max_tokens is not None and len(self._ids) >= params.max_tokens:
                yield self._done("length")
                return
            if len(self._request.prompt_ids) + len(self._ids) >= engine.context:
                yield self._done("context")
                return
            logits = engine.logits(hidden)
            token_id = sampler.sample(logits[0])
            self._ids.append(token_id)
            self._first = self._first or time.perf_counter()
            if token_id in engine.eos_token_ids:
                yield self._done("stop")
                return
            scores = None if self._request.logprobs is None else score(logits, [token_id], self._request.logprobs)[0]
            stopped = yield from self._emit(token_id, scores)
            if stopped or self._cancel.is_set():
                yield self._done("stop" if stopped else "interrupted")
                return
            if len(self._request.prompt_ids) + len(self._ids) < engine.context:
                hidden = engine.forward([token_id])

    def _emit(self, token_id: int, scores: Scores | None) -> Generator[Event, None, bool]:
        """Yield a generated token; return whether it completed a stop text."""
        text = self._decoder.push(token_id)
        delta, stopped = self._stops.push(text)
        self._text.append(delta)
        yield self._token(token_id, scores, text=text, delta=delta)
        return stopped

    def _token(
        self, token_id: int, scores: Scores | None, *, text: str | None = None, delta: str = "", in_prompt: bool = False
    ) -> Token:
        if text is None:
            text = delta = self._decoder.push(token_id)
            self._text.append(delta)
        if scores is None:
            return Token(token_id, text, delta, in_prompt=in_prompt)
        name = self._engine.tokenizer.token_text
        top = tuple(Candidate(candidate, name(candidate), logprob) for candidate, logprob in scores.top)
        return Token(token_id, text, delta, scores.logprob, top, in_prompt)

    def _done(self, reason: FinishReason) -> Done:
        now = time.perf_counter()
        delta = ""
        if reason != "stop" or (self._ids and self._ids[-1] in self._engine.eos_token_ids):
            # What waited for a stop text, or for the rest of a character, comes after all.
            delta, stopped = self._stops.push(self._decoder.flush())
            delta += "" if stopped else self._stops.flush()
            self._text.append(delta)
        return Done(
            finish_reason=reason,
            text="".join(self._text),
            token_ids=tuple(self._ids),
            prompt_tokens=len(self._request.prompt_ids),
            cached_tokens=self._cached,
            delta=delta,
            timing=Timing(
                prefill_s=(self._prefilled or now) - self._started,
                decode_s=now - self._prefilled if self._prefilled else 0.0,
                ttft_s=(self._first or now) - self._started,
            ),
        )
