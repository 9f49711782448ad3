"""Completions by a server: one request, or several at a time for a batch."""

import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dslite.app.completion.protocol import (
    RAW_MAX_TOKENS,
    Answer,
    CompletionOptions,
    Prompt,
    RequestSource,
    TokenPrompt,
    messages_of,
    unexpected,
)
from dslite.app.settings.endpoint import RemoteModelRef
from dslite.app.settings.sampling import check_types, overlaid
from dslite.app.terminal import console
from dslite.app.terminal.console import TerminalStatus
from dslite.app.terminal.progress_text import reading_text
from dslite.model.errors import DsliteError
from dslite.runtime.chat.remote import RemoteModel, RemoteRequest
from dslite.runtime.constraints.checking import check_answer
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError
from dslite.runtime.events import ChatEvent, Done, Notice, Prefilling, Thinking, Token, Waiting

_MOST_AT_ONCE = 8
_LOOK_S = 0.05
_GRACE_S = 0.5  # after a cancel, for the threads to hand over what came

_Result = tuple[int, Answer | DsliteError]

_log = logging.getLogger(__name__)


class RemoteCompletion:
    """A CompletionBackend over a server."""

    load_s = 0.0
    weights: str | None = None
    process: str | None = None

    def __init__(self, served: RemoteModelRef, options: CompletionOptions) -> None:
        self.name = self.key = served.ref.name
        self._model = RemoteModel(served.endpoint, served.ref.name, served.context)
        self._options = options

    def serves(self, model: str) -> bool:
        return model == self.name

    def request(self, prompt: Prompt, overrides: Mapping[str, Any] | None = None) -> RemoteRequest:
        """The request of a text, a conversation or token ids. Raises UsageError."""
        overrides, options = overrides or {}, self._options
        chosen = {key: value for key, value in options.sampling.items() if value is not None}
        sampling = overlaid(chosen, check_types(overrides))
        if isinstance(prompt, TokenPrompt):
            if options.echo:
                raise UsageError("a server does not echo token ids as text", "leave out --echo, or give the text")
            sampling.setdefault("max_tokens", RAW_MAX_TOKENS)
            return RemoteRequest(SamplingParams(**sampling), token_ids=prompt.ids, logprobs=options.logprobs)
        if not options.raw:
            if options.echo:
                raise UsageError("a server's chat does not echo the prompt", "leave out --echo, or give --raw")
            params = SamplingParams(**sampling)
            messages = options.told(messages_of(prompt, overrides.get("system", options.system)), params)
            return RemoteRequest(params, messages, logprobs=options.logprobs)
        if not isinstance(prompt, str):
            raise UsageError("messages need the chat template", "leave out --raw")
        sampling.setdefault("max_tokens", RAW_MAX_TOKENS)
        params = SamplingParams(**sampling)
        return RemoteRequest(
            params,
            text=prompt,
            bos=options.bos,
            parse_special=options.parse_special,
            logprobs=options.logprobs,
            echo=options.echo,
        )

    def check_fits(self, request: RemoteRequest) -> None:
        """The server knows what fits."""

    def resume(self, conversation: str, request: RemoteRequest) -> None:
        """The server has its own cache."""

    def keep(self, conversation: str) -> None:
        """The server has its own cache."""

    def memory(self) -> Mapping[str, None]:
        names = ("weights_bytes", "kv_bytes", "kv_bytes_per_token", "peak_rss_bytes", "peak_vram_bytes")
        return dict.fromkeys(names)

    def experts(self) -> Mapping[str, None]:
        return dict.fromkeys(("slots", "hits", "misses", "bytes_moved"))

    def stream(self, request: RemoteRequest, cancel: threading.Event) -> Iterator[Token | Done]:
        """The tokens of an answer and its end; what comes before them shows on the status line."""
        status = TerminalStatus()
        try:
            for event in self._model.generate(request, cancel):
                if isinstance(event, Token | Done):
                    status.clear()
                    yield event
                    self._check(event, request)
                elif isinstance(event, Notice):
                    status.clear()
                    console.warn(event.message)
                else:
                    status.show(_progress(event))
        finally:
            status.clear()

    def _check(self, event: Token | Done, request: RemoteRequest) -> None:
        """Raise DsliteError where a whole answer has not the shape that was asked for."""
        constraint = request.params.constraint
        if constraint is not None and isinstance(event, Done) and event.finish_reason == "stop":
            check_answer(event.text, constraint, self._model.endpoint.host)

    def run_batch(self, requests: RequestSource[RemoteRequest], cancel: threading.Event) -> Iterator[_Result]:
        """Answer requests, several at a time, each in a thread."""
        results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        running = 0
        end: float | None = None
        while True:
            while running < _MOST_AT_ONCE and (taken := requests.take(wait=not running)) is not None:
                threading.Thread(target=self._work, args=(*taken, results, cancel), daemon=True).start()
                running += 1
            if not running:
                return
            try:
                result = results.get(timeout=_LOOK_S)
            except queue.Empty:
                # A thread that does not end in time is left behind: what it waits for may never come.
                if cancel.is_set():
                    end = end or time.monotonic() + _GRACE_S
                    if time.monotonic() > end:
                        return
                continue
            running -= 1
            yield result

    def _work(
        self, key: int, request: RemoteRequest, results: "queue.SimpleQueue[_Result]", cancel: threading.Event
    ) -> None:
        results.put((key, self._answer(key, request, cancel)))

    def _answer(self, key: int, request: RemoteRequest, cancel: threading.Event) -> Answer | DsliteError:
        """The answer, or the error of what went wrong: the thread must not end without a result."""
        answer = Answer()
        try:
            for event in self._model.generate(request, cancel):
                if isinstance(event, Token | Done):
                    answer.add(event)
                    self._check(event, request)
                elif isinstance(event, Notice | Waiting):
                    console.warn(f"line {key + 1}: {event.message if isinstance(event, Notice) else event.reason}")
        except DsliteError as error:
            return error
        except BaseException as error:
            _log.exception("line %d of the batch failed", key + 1)
            return unexpected(error)
        return answer


def _progress(event: ChatEvent) -> str:
    """An event before the answer, for the status line."""
    if isinstance(event, Prefilling):
        return reading_text(event)
    if isinstance(event, Thinking):
        return f"thinking · {event.tokens:,} tokens"
    return event.reason if isinstance(event, Waiting) else ""
