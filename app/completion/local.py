"""The making of answers for `complete`: a model, opened once, and requests to it."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dslite.app.completion.protocol import RAW_MAX_TOKENS, CompletionOptions, messages_of, reading
from dslite.app.settings.sampling import check_types, model_defaults
from dslite.app.terminal.console import TerminalStatus
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.engine.batch import Batch
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done, Loading, Prefilling, Token
from dslite.runtime.open_engine import open_engine
from dslite.runtime.text.chat_template import AnswerSpacing, ChatTemplate, Message


class LocalCompletion:
    """One loaded model that answers prompts in a style."""

    def __init__(
        self, ref: ModelRef, style: CompletionOptions, engine: Engine, defaults: Mapping[str, Any], load_s: float
    ) -> None:
        self.name = ref.repo_id or ref.name
        self.key = ref.key
        self._engine = engine
        self.load_s = load_s
        self._style = style
        self._defaults = defaults
        self._template = None if style.raw else ChatTemplate(engine.tokenizer)
        self._batch = Batch(engine)
        self._spacings: dict[int, AnswerSpacing] = {}

    @classmethod
    def open(cls, ref: ModelRef, style: CompletionOptions, options: EngineOptions) -> "LocalCompletion":
        """Find and load the model, telling how far on the status line."""
        started = time.perf_counter()
        status = TerminalStatus()
        folder: Path = locate(ref)
        try:
            engine = open_engine(folder, options, lambda event: status.show(_loading(event)))
        finally:
            status.clear()
        return cls(ref, style, engine, model_defaults(folder), time.perf_counter() - started)

    def request(self, prompt: str | Sequence[Message], overrides: Mapping[str, Any] | None = None) -> Request:
        """What to ask the engine for a text or a conversation. Raises UsageError."""
        overrides = overrides or {}
        style = self._style
        chosen = {key: value for key, value in style.sampling.items() if value is not None}
        sampling = {**self._defaults, **chosen, **check_types(overrides)}
        if self._template is None:
            sampling.setdefault("max_tokens", RAW_MAX_TOKENS)
            ids = self._raw_ids(prompt)
        else:
            ids = self._template.encode(messages_of(prompt, overrides.get("system", style.system)))
        return Request(ids, SamplingParams(**sampling), style.logprobs, style.echo)

    def _raw_ids(self, prompt: str | Sequence[Message]) -> list[int]:
        if not isinstance(prompt, str):
            raise UsageError("messages need the chat template", "leave out --raw")
        start = [self._engine.model.config.bos_token_id] if self._style.bos else []
        return start + self._engine.tokenizer.encode(prompt)

    def check(self, request: Request) -> None:
        """Raise ContextFullError for a prompt that does not fit."""
        self._engine.check_fits(request)

    def resume(self, talk: str, request: Request) -> None:
        """Take up the saved rows of a conversation."""
        self._engine.resume(talk, request.prompt_ids)

    def keep(self, talk: str) -> None:
        """Save the cached rows of a conversation."""
        self._engine.keep(talk)

    def memory(self) -> Mapping[str, int]:
        return self._engine.memory()

    def experts(self) -> Mapping[str, int]:
        return self._engine.expert_stats()

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Token | Done]:
        """The tokens of an answer and its end; reading the prompt shows on the status line."""
        status, spacing = TerminalStatus(), self._spacing(request)
        try:
            for event in self._engine.generate(request, cancel):
                if isinstance(event, Prefilling):
                    status.show(reading(event))
                    continue
                status.clear()
                yield spacing.strip(event)
        finally:
            status.clear()

    def join(self, key: int, request: Request) -> None:
        """Answer a request together with others. Raises ContextFullError."""
        self._batch.join(key, request)
        self._spacings[key] = self._spacing(request)

    def together(self, cancel: threading.Event) -> Iterator[tuple[int, Token | Done | DsliteError]]:
        """What happens to the requests that joined, by their keys; on `cancel` those that have begun end."""
        while len(self._batch):
            for key, event in self._batch.interrupt() if cancel.is_set() else self._batch.step():
                assert isinstance(key, int)
                if isinstance(event, DsliteError):
                    yield key, event
                elif not isinstance(event, Prefilling):
                    yield key, self._spacings[key].strip(event)

    def _spacing(self, request: Request) -> AnswerSpacing:
        return AnswerSpacing(int(self._template is not None and not request.echo))


def _loading(event: Loading) -> str:
    percent = 100 * event.done_bytes // max(event.total_bytes, 1)
    return f"loading weights {percent} % · {event.done_bytes / 1e9:.1f} of {event.total_bytes / 1e9:.1f} GB"
