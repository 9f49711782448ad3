"""A model that is not one: it emits given text at a set rate. Free of torch."""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dslite.app.chat.model_loading import LoadedModel
from dslite.runtime.chat.protocol import ChatBackend, ModelStats
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.errors import ContextFullError
from dslite.runtime.events import Candidate, ChatEvent, Done, Event, LoadingEvent, Prefilling, Timing, Token

PIECE = re.compile(r"\s*\S{1,4}|\s+")


def pieces(text: str) -> list[str]:
    """Text as tokens of about four characters."""
    return PIECE.findall(text)


class FakeBackend(ChatBackend):
    """Answers with `text(messages)`. `rate` is tokens/s, None as fast as can be; `gate`, when given, must be set for
    each token to come: a test holds the answer where it wants it."""

    def __init__(
        self,
        text: Callable[[Sequence[Any]], str] | str = "Hello, *world*.",
        *,
        rate: float | None = None,
        gate: threading.Semaphore | None = None,
        context: int = 32_768,
        facts: Mapping[str, Any] | None = None,
        prefill: Sequence[Prefilling] = (),
        scores: bool = True,
    ) -> None:
        self._text = text
        self._rate = rate
        self._gate = gate
        self._context = context
        self._facts = dict(facts or {})
        self._prefill = prefill
        self._scores = scores
        self.asked: list[list[Any]] = []
        self.params: list[Any] = []
        self.emitted = 0
        self.idle = threading.Event()
        self.idle.set()

    def reply(
        self,
        messages: Sequence[Any],
        params: Any,
        cancel: threading.Event,
        *,
        continue_final_message: bool = False,
        on_prefill: Callable[[Prefilling], None] | None = None,
    ) -> Iterator[ChatEvent]:
        self.asked.append(list(messages))
        self.params.append(params)
        count = sum(len(pieces(message.content)) for message in messages)
        if count >= self._context:
            raise ContextFullError(
                f"the prompt has {count:,} tokens, and the context holds {self._context:,}", "shorten"
            )
        return self._run(self._text(messages) if callable(self._text) else self._text, params, count, cancel)

    def _run(self, text: str, params: Any, count: int, cancel: threading.Event) -> Iterator[Event]:
        self.idle.clear()
        started = time.perf_counter()
        yield from self._prefill
        yield Prefilling(count, count, 0, 0.001)
        ids: list[int] = []
        made = ""
        reason = "stop"
        for place, piece in enumerate(pieces(text)):
            if params.max_tokens is not None and place >= params.max_tokens:
                reason = "length"
                break
            if not self._wait(started, place, cancel):
                reason = "interrupted"
                break
            ids.append(place)
            made += piece
            self.emitted += 1
            yield Token(place, piece, piece)
        self.idle.set()
        spent = time.perf_counter() - started
        yield Done(reason, made, tuple(ids), count, 0, timing=Timing(0.001, spent, 0.002))  # type: ignore[arg-type]

    def _wait(self, started: float, place: int, cancel: threading.Event) -> bool:
        """Until the token may come; False when cancelled."""
        if self._gate is not None:
            while not self._gate.acquire(timeout=0.01):
                if cancel.is_set():
                    return False
        if self._rate is not None:
            delay = started + place / self._rate - time.perf_counter()
            if delay > 0 and cancel.wait(delay):
                return False
        return not cancel.is_set()

    def score(self, messages: Sequence[Any], top: int, cancel: threading.Event) -> list[Token] | None:
        """Every fifth token is unlikely, and ` other` was likelier."""
        if not self._scores:
            return None
        tokens = []
        for place, piece in enumerate(pieces(messages[-1].content)):
            own = Candidate(place, piece, math.log(0.1 if place % 5 == 2 else 0.95))
            other = Candidate(1000, " other", math.log(0.8 if place % 5 == 2 else 0.04))
            best = sorted((own, other), key=lambda each: -each.logprob)
            tokens.append(Token(place, piece, piece, own.logprob, tuple(best[:top]), in_prompt=True))
        return tokens

    def trim_to_fit(self, messages: Sequence[Any], *, continue_final_message: bool = False) -> list[Any]:
        kept = list(messages)
        while sum(len(pieces(message.content)) for message in kept) >= self._context and len(kept) > 1:
            del kept[0]
        return kept

    def stats(self) -> ModelStats:
        values: dict[str, Any] = {
            "name": "fake/Model",
            "device": "cpu",
            "context": self._context,
            "memory": {"weights_bytes": 31_412_968_448, "kv_bytes": 3_000_000, "peak_rss_bytes": 900_000_000},
            "experts": {"slots": 64, "hits": 0, "misses": 0, "bytes_moved": 0},
            "experts_per_layer": 64,
            "first_moe_layer": 1,
            "kv_bytes_per_token": 31_104,
            "plain_kv_bytes_per_token": 276_480,
        }
        return ModelStats(**{**values, **self._facts})


class FakeLoader:
    """Loads the fake: reports `loading`, waits for `hold`. `check` raises what `error` gives."""

    parse = staticmethod(parse_model)
    remote_host: str | None = None

    def __init__(
        self,
        backend: FakeBackend,
        *,
        loading: Sequence[LoadingEvent] = (),
        hold: threading.Event | None = None,
        error: Callable[[ModelRef], Exception | None] = lambda _: None,
    ) -> None:
        self._backend, self._loading, self._hold, self._error = backend, loading, hold, error

    def check(self, ref: ModelRef) -> None:
        if (fault := self._error(ref)) is not None:
            raise fault

    def load(self, ref: ModelRef, report: Callable[[LoadingEvent], None]) -> LoadedModel:
        for event in self._loading:
            report(event)
        if self._hold is not None:
            self._hold.wait()
        return LoadedModel(self._backend, count_tokens=lambda text: len(pieces(text)))
