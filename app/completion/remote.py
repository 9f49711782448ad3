"""The completion backend of a server's model."""

import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dslite.app.completion.protocol import RAW_MAX_TOKENS, CompletionOptions, messages_of, reading
from dslite.app.settings.endpoint import RemoteModelRef
from dslite.app.settings.sampling import check_types
from dslite.app.terminal import console
from dslite.app.terminal.console import TerminalStatus
from dslite.model.errors import DsliteError
from dslite.runtime.chat.remote import RemoteModel, RemoteRequest
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError
from dslite.runtime.events import ChatEvent, Done, Notice, Prefilling, Thinking, Token, Waiting
from dslite.runtime.text.chat_template import Message

_TOGETHER = 8  # requests under way at a time

log = logging.getLogger(__name__)

_BatchItem = tuple[int, Token | Done | DsliteError]


class RemoteCompletion:
    """A model of a server that answers prompts in a style."""

    load_s = 0.0

    def __init__(self, served: RemoteModelRef, style: CompletionOptions) -> None:
        self.name = self.key = served.ref.name
        self._model = RemoteModel(served.endpoint, served.ref.name, served.context)
        self._style = style
        self._joined: list[tuple[int, RemoteRequest]] = []

    def request(self, prompt: str | Sequence[Message], overrides: Mapping[str, Any] | None = None) -> RemoteRequest:
        """What to ask the server for a text or a conversation. Raises UsageError."""
        overrides, style = overrides or {}, self._style
        chosen = {key: value for key, value in style.sampling.items() if value is not None}
        sampling = {**chosen, **check_types(overrides)}
        if not style.raw:
            if style.echo:
                raise UsageError("a server's chat does not echo the prompt", "leave out --echo, or give --raw")
            messages = messages_of(prompt, overrides.get("system", style.system))
            return RemoteRequest(SamplingParams(**sampling), messages, logprobs=style.logprobs)
        if not isinstance(prompt, str):
            raise UsageError("messages need the chat template", "leave out --raw")
        sampling.setdefault("max_tokens", RAW_MAX_TOKENS)
        params = SamplingParams(**sampling)
        return RemoteRequest(params, text=prompt, bos=style.bos, logprobs=style.logprobs, echo=style.echo)

    def check(self, request: RemoteRequest) -> None:
        """Nothing: what fits is for the server to say."""

    def resume(self, talk: str, request: RemoteRequest) -> None:
        """Nothing: the server keeps what it computed."""

    def keep(self, talk: str) -> None:
        """Nothing, either."""

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
                elif isinstance(event, Notice):
                    status.clear()
                    console.warn(event.message)
                else:
                    status.show(_progress(event))
        finally:
            status.clear()

    def join(self, key: int, request: RemoteRequest) -> None:
        """Ask together with others."""
        self._joined.append((key, request))

    def together(self, cancel: threading.Event) -> Iterator[_BatchItem]:
        """The events of the requests that joined, by their keys: several requests at a time, each in a thread.

        A fault of one request is an event of that request, whatever it is, and the others go on.
        """
        waiting: queue.SimpleQueue[tuple[int, RemoteRequest]] = queue.SimpleQueue()
        for joined in self._joined:
            waiting.put(joined)
        items: queue.SimpleQueue[_BatchItem | None] = queue.SimpleQueue()  # None: a thread has ended
        running = min(_TOGETHER, len(self._joined))
        self._joined = []
        for _ in range(running):
            threading.Thread(target=self._work, args=(waiting, items, cancel), daemon=True).start()
        while running:
            item = items.get()
            if item is None:
                running -= 1
            else:
                yield item

    def _work(
        self,
        waiting: "queue.SimpleQueue[tuple[int, RemoteRequest]]",
        items: "queue.SimpleQueue[_BatchItem | None]",
        cancel: threading.Event,
    ) -> None:
        try:
            while not cancel.is_set():
                try:
                    key, request = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._answer(key, request, items, cancel)
                except DsliteError as error:
                    items.put((key, error))
                except BaseException as error:
                    log.exception("line %d of the batch failed", key + 1)
                    items.put((key, DsliteError(f"unexpected {type(error).__name__}: {error}")))
        finally:
            items.put(None)

    def _answer(
        self, key: int, request: RemoteRequest, items: "queue.SimpleQueue[_BatchItem | None]", cancel: threading.Event
    ) -> None:
        for event in self._model.generate(request, cancel):
            if isinstance(event, Token | Done):
                items.put((key, event))
            elif isinstance(event, Notice | Waiting):
                text = event.message if isinstance(event, Notice) else event.reason
                console.warn(f"line {key + 1}: {text}")


def _progress(event: ChatEvent) -> str:
    """An event before the answer, for the status line."""
    if isinstance(event, Prefilling):
        return reading(event)
    if isinstance(event, Thinking):
        return f"thinking · {event.tokens:,} tokens"
    return event.reason if isinstance(event, Waiting) else ""
