"""Completions by an engine that runs already, in a process of its own. Where it ends, this process goes on.

Imports nothing that computes: torch and tokenizers are the engine's, until it is lost.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dslite.app.completion.protocol import Answer, CompletionOptions, Prompt, RequestSource, TokenPrompt
from dslite.app.completion.warm_batch import WarmAnswer, WarmBatch
from dslite.app.terminal import console
from dslite.app.terminal.console import TerminalStatus
from dslite.app.terminal.progress_text import loading_text, reading_text
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import ModelUnavailableError, UsageError
from dslite.runtime.events import Done, Event, LoadingEvent, Prefilling, Token
from dslite.runtime.text.message import Message
from dslite.runtime.warm.client import EngineLostError, EngineRefusedError, WarmClient, find_engine, interrupted_end
from dslite.runtime.warm.key import EngineKey
from dslite.runtime.warm.launcher import obtain_engine
from dslite.runtime.warm.messages import message_objects, parse_params

if TYPE_CHECKING:
    from dslite.app.completion.local import LocalCompletion
    from dslite.runtime.engine.request import Request

_T = TypeVar("_T")


@dataclass(frozen=True)
class WarmRequest:
    """A prompt whose request the engine holds, and what it takes to make the request again."""

    params: SamplingParams
    prompt_tokens: int
    prompt: Prompt
    overrides: Mapping[str, Any] | None


class WarmCompletion:
    """A CompletionBackend over a warm engine."""

    process: str | None = "warm"

    def __init__(
        self,
        client: WarmClient,
        ref: ModelRef,
        options: CompletionOptions,
        engine_options: EngineOptions,
        *,
        private: bool,
        load_s: float = 0.0,
    ) -> None:
        """`private`: the engine forgets the requests. `load_s`: the time that was waited for it to load."""
        self.name = ref.repo_id or ref.name
        self.key = ref.key
        self.weights: str | None = engine_options.weights
        self.load_s = load_s
        self._client = client
        self._ref = ref
        self._options = options
        self._engine_options = engine_options
        self._private = private
        self._local: LocalCompletion | None = None  # once the engine is lost
        self._resumed: str | None = None
        self._memory: Mapping[str, int] = {}  # of the last answer
        self._experts: Mapping[str, int] = {}

    def serves(self, model: str) -> bool:
        return model == self.name or parse_model(model).key == self.key

    def request(self, prompt: Prompt, overrides: Mapping[str, Any] | None = None) -> WarmRequest:
        """Have the engine make the request. Raises UsageError, ContextFullError."""
        made = self._ask(
            lambda client: _made(self._prepare(client, prompt, overrides)),
            lambda local: _made_here(local.request(prompt, overrides)),
        )
        return WarmRequest(*made, prompt, overrides)

    def _prepare(self, client: WarmClient, prompt: Prompt, overrides: Mapping[str, Any] | None) -> Mapping[str, Any]:
        fields = {"prompt": _prompt_object(prompt), "overrides": overrides, "options": asdict(self._options)}
        reply: Mapping[str, Any] = client.call("prepare", private=self._private, complete=fields)
        return reply

    def check_fits(self, request: WarmRequest) -> None:
        """The engine has checked its request."""
        if self._local is not None:
            self._local.check_fits(self._local.request(request.prompt, request.overrides))

    def resume(self, conversation: str, request: WarmRequest) -> None:
        self._resumed = conversation
        self._ask(
            lambda client: client.call("resume", conversation=conversation),
            lambda local: local.resume(conversation, local.request(request.prompt, request.overrides)),
        )

    def keep(self, conversation: str) -> None:
        self._ask(lambda client: client.call("keep", conversation=conversation), lambda local: local.keep(conversation))

    def memory(self) -> Mapping[str, int | None]:
        if self._local is not None:
            return self._local.memory()
        names = ("weights_bytes", "kv_bytes", "kv_bytes_per_token", "peak_rss_bytes", "peak_vram_bytes")
        return self._memory or dict.fromkeys(names)

    def experts(self) -> Mapping[str, int | None]:
        if self._local is not None:
            return self._local.experts()
        return self._experts or dict.fromkeys(("slots", "hits", "misses", "bytes_moved"))

    def stream(self, request: WarmRequest, cancel: threading.Event) -> Iterator[Token | Done]:
        """The tokens of an answer and its end; prefill shows on the status line.

        Where the engine is lost, this process makes the answer again: what has come already is given and passed over.
        """
        came: list[Token] = []
        if self._local is None:
            try:
                for event in _shown(self._client.answer(cancel)):
                    if isinstance(event, Token):
                        came.append(event)
                    else:
                        self._memory, self._experts = self._client.memory, self._client.experts
                    yield event
                return
            except EngineLostError as error:
                if cancel.is_set():
                    yield interrupted_end(came, request.prompt_tokens)
                    return
                local = self._fall_back(error)
                if self._resumed is not None:
                    self.resume(self._resumed, request)
        else:
            local = self._local
        yield from local.stream_again(local.request(request.prompt, request.overrides), came, cancel)

    def run_batch(
        self, requests: RequestSource[WarmRequest], cancel: threading.Event
    ) -> Iterator[tuple[int, Answer | DsliteError]]:
        """Answer requests together. Where the engine is lost, this process answers those that have no result."""
        lost: list[tuple[int, WarmRequest]] = []
        if self._local is None:
            batch = WarmBatch(
                lambda: find_engine(EngineKey.of(self._ref, self._engine_options), lambda _: None),
                lambda client, request: self._prepare(client, request.prompt, request.overrides),
            )
            for key, result in batch.run(requests, cancel):
                if isinstance(result, WarmAnswer):
                    self._memory, self._experts = result.memory, result.experts
                yield key, result.answer if isinstance(result, WarmAnswer) else result
            if batch.fault is None or cancel.is_set():
                return
            lost = batch.lost
            if self._local is None:
                self._fall_back(batch.fault)
        local = self._local
        assert local is not None
        yield from local.run_batch(_LocalRequests(local, lost, requests), cancel)

    def _ask(self, engine: Callable[[WarmClient], _T], here: "Callable[[LocalCompletion], _T]") -> _T:
        if self._local is None:
            try:
                return engine(self._client)
            except EngineLostError as error:
                self._fall_back(error)
        assert self._local is not None
        return here(self._local)

    def _fall_back(self, error: EngineLostError) -> "LocalCompletion":
        """Load the model into this process."""
        from dslite.app.completion.local import LocalCompletion

        console.warn(f"the warm engine was lost ({error}): this process loads the model and goes on")
        self._client.close()
        self.process = None
        self._local = LocalCompletion.open(self._ref, self._options, self._engine_options)
        self.load_s = self._local.load_s
        return self._local


@dataclass(frozen=True)
class _LocalRequests:
    """The RequestSource of a batch whose engine was lost: first what has no result, then what comes."""

    local: "LocalCompletion"
    lost: list[tuple[int, WarmRequest]]
    more: RequestSource[WarmRequest]

    def take(self, *, wait: bool) -> "tuple[int, Request] | None":
        taken = self.lost.pop(0) if self.lost else self.more.take(wait=wait)
        return None if taken is None else (taken[0], self.local.request(taken[1].prompt, taken[1].overrides))


def find_warm(ref: ModelRef, options: EngineOptions, *, keep_alive_s: float | None) -> tuple[WarmClient, float] | None:
    """The engine that runs for a model, or with `keep_alive_s` is started, and the seconds that its load took.

    None where this process is to compute; where there is a reason, stderr says it. Raises ModelUnavailableError,
    UsageError.
    """
    status, started = TerminalStatus(), time.perf_counter()
    waited = False

    def show(event: LoadingEvent) -> None:
        nonlocal waited
        waited = True
        status.show(loading_text(event))

    try:
        client = obtain_engine(ref, options, keep_alive_s, show)
    except EngineRefusedError as error:
        console.warn(f"the warm engine is not used: {error}; dslite engine stop ends it")
        return None
    except (ModelUnavailableError, UsageError):
        raise  # the engine cannot load the model, and this process could not either
    except DsliteError as error:
        console.warn(f"no warm engine is used: {error.message}{'; ' if error.remedy else ''}{error.remedy}")
        return None
    finally:
        status.clear()
    return None if client is None else (client, time.perf_counter() - started if waited else 0.0)


def _made(reply: Mapping[str, Any]) -> tuple[SamplingParams, int]:
    return parse_params(reply["params"]), int(reply["prompt_tokens"])


def _made_here(request: "Request") -> tuple[SamplingParams, int]:
    return request.params, len(request.prompt_ids)


def _shown(events: Iterator[Event]) -> Iterator[Token | Done]:
    """The events of an answer, its prefill shown on the status line."""
    status = TerminalStatus()
    try:
        for event in events:
            if isinstance(event, Prefilling):
                status.show(reading_text(event))
                continue
            status.clear()
            yield event
    finally:
        status.clear()


def _prompt_object(prompt: Prompt) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"text": prompt}
    if isinstance(prompt, TokenPrompt):
        return {"ids": prompt.ids}
    return {"messages": message_objects([message for message in prompt if isinstance(message, Message)])}
