"""Completions by a model in this process: it is loaded once, and answers one request or a batch."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
from dslite.app.settings.sampling import check_types, model_defaults, overlaid
from dslite.app.terminal.console import TerminalStatus
from dslite.app.terminal.progress_text import loading_text, reading_text
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.downloads.packed import locate_weights
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import DEFAULT_SEQUENCES, Scheduler
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done, Event, Prefilling, Token
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import AnswerSpacing
from dslite.runtime.text.prompt_limit import PromptLimit

_MOST_TAKEN = 2 * DEFAULT_SEQUENCES  # those that run, and as many that wait to take their places

_log = logging.getLogger(__name__)


class _Running:
    """A request of a batch, and its answer so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._answer = Answer()
        self._spacing = AnswerSpacing(request.spaces)

    def take(self, event: Event | DsliteError) -> Answer | DsliteError | None:
        """What an event makes of it: its result, once it is over."""
        if isinstance(event, DsliteError):
            return event
        if not isinstance(event, Prefilling):
            self._answer.add(self._spacing.strip(event))
        return self._answer if isinstance(event, Done) else None


class LocalCompletion:
    """A CompletionBackend over an engine."""

    process: str | None = None

    def __init__(
        self,
        ref: ModelRef,
        folder: Path,
        options: CompletionOptions,
        engine: Engine,
        *,
        weights: str = "bfloat16",
        load_s: float = 0.0,
    ) -> None:
        self.name = ref.repo_id or ref.name
        self.key = ref.key
        self.weights: str | None = weights
        self.load_s = load_s
        self._engine = engine
        self._options = options
        self._model_defaults = model_defaults(folder)
        self._template = None if options.raw else ChatTemplate(engine.tokenizer)
        self._limit = PromptLimit(engine.context, engine.tokenizer)

    @classmethod
    def open(cls, ref: ModelRef, options: CompletionOptions, engine_options: EngineOptions) -> "LocalCompletion":
        """Find and load the model; progress shows on the status line. Raises DsliteError."""
        started = time.perf_counter()
        status = TerminalStatus()
        folder = locate_weights(ref, engine_options.weights)
        try:
            engine = open_engine(ref, engine_options, lambda event: status.show(loading_text(event)))
        finally:
            status.clear()
        load_s = time.perf_counter() - started
        return cls(ref, folder, options, engine, weights=engine_options.weights, load_s=load_s)

    def serves(self, model: str) -> bool:
        return model == self.name or parse_model(model).key == self.key

    def request(self, prompt: Prompt, overrides: Mapping[str, Any] | None = None) -> Request:
        """The request of a text, a conversation or token ids. Raises UsageError, ContextFullError."""
        overrides = overrides or {}
        options = self._options
        chosen = {key: value for key, value in options.sampling.items() if value is not None}
        sampling = overlaid({**self._model_defaults, **chosen}, check_types(overrides))
        if isinstance(prompt, TokenPrompt):
            self._check_ids(prompt.ids)
        else:
            texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
            self._limit.check(texts, parse_special=options.parse_special)
        if isinstance(prompt, TokenPrompt) or self._template is None:
            sampling.setdefault("max_tokens", RAW_MAX_TOKENS)
            return Request(self._raw_ids(prompt), SamplingParams(**sampling), options.logprobs, options.echo)
        params = SamplingParams(**sampling)
        messages = options.told(messages_of(prompt, overrides.get("system", options.system)), params)
        ids = self._template.encode(messages)
        return Request(ids, params, options.logprobs, options.echo, spaces=int(not options.echo))

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = self._engine.tokenizer.vocab_size
        if (wrong := next((token_id for token_id in ids if token_id >= size), None)) is not None:
            raise UsageError(f"the prompt has {wrong}, which no token has", f"ids go from 0 to {size - 1}")

    def _raw_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, TokenPrompt):
            return list(prompt.ids)
        if not isinstance(prompt, str):
            raise UsageError("messages need the chat template", "leave out --raw")
        start = [self._engine.model.config.bos_token_id] if self._options.bos else []
        return start + self._engine.tokenizer.encode(prompt, parse_special=self._options.parse_special)

    def check_fits(self, request: Request) -> None:
        self._engine.check_fits(request)

    def resume(self, conversation: str, request: Request) -> None:
        self._engine.resume(conversation, request.prompt_ids)

    def keep(self, conversation: str) -> None:
        self._engine.save(conversation)

    def memory(self) -> Mapping[str, int]:
        return self._engine.memory()

    def experts(self) -> Mapping[str, int]:
        return self._engine.expert_stats()

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Token | Done]:
        """The tokens of an answer and its end; prefill shows on the status line."""
        status, spacing = TerminalStatus(), AnswerSpacing(request.spaces)
        try:
            for event in self._engine.generate(request, cancel, lambda event: status.show(reading_text(event))):
                if isinstance(event, Prefilling):
                    status.show(reading_text(event))
                    continue
                status.clear()
                yield spacing.strip(event)
        finally:
            status.clear()

    def stream_again(self, request: Request, came: Sequence[Token], cancel: threading.Event) -> Iterator[Token | Done]:
        """The rest of an answer of which another process made the first tokens, and ended.

        Those are taken as they are, not drawn, so that the text goes on where it broke off; they are not repeated.
        """
        again = self.stream(request.after(came), cancel)
        for place, event in enumerate(again):
            if place >= len(came) or isinstance(event, Done):
                yield event

    def run_batch(
        self, requests: RequestSource[Request], cancel: threading.Event
    ) -> Iterator[tuple[int, Answer | DsliteError]]:
        """Answer requests together.

        A step that fails as a whole says nothing about which request is at fault: those that run are answered one by
        one.
        """
        scheduler, running = Scheduler(self._engine), dict[int, _Running]()
        while True:
            while len(running) < _MOST_TAKEN and (taken := requests.take(wait=not running)) is not None:
                key, request = taken
                try:
                    scheduler.add(key, request, cancel)
                    running[key] = _Running(request)
                except DsliteError as error:
                    yield key, error
            if not running:
                return
            stopped = cancel.is_set()
            try:
                events = scheduler.interrupt() if stopped else scheduler.step()
            except Exception:
                _log.exception("a step of the batch failed")
                scheduler = Scheduler(self._engine)  # without its caches
                yield from self._run_one_by_one({key: _Running(each.request) for key, each in running.items()}, cancel)
                running.clear()
                continue
            for name, event in events:
                assert isinstance(name, int)  # as they were added
                if (result := running[name].take(event)) is not None:
                    del running[name]
                    yield name, result
            if stopped:
                return

    def _run_one_by_one(
        self, running: Mapping[int, _Running], cancel: threading.Event
    ) -> Iterator[tuple[int, Answer | DsliteError]]:
        for key, each in running.items():
            if cancel.is_set():
                return
            try:
                results = [each.take(event) for event in self._engine.generate(each.request, cancel)]
            except DsliteError as error:
                yield key, error
            except Exception as error:
                _log.exception("a request of the batch failed")
                yield key, unexpected(error)
            else:
                yield from ((key, result) for result in results if result is not None)
