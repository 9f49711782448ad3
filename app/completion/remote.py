"""The making of answers for `complete` by a server."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dslite.app.completion.protocol import RAW_MAX_TOKENS, CompletionOptions, messages_of, reading
from dslite.app.settings.endpoint import RemoteModelRef
from dslite.app.settings.sampling import check_types
from dslite.app.terminal.console import TerminalStatus
from dslite.model.errors import DsliteError
from dslite.runtime.chat.remote import RemoteModel, RemoteRequest
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done, Prefilling, Token
from dslite.runtime.text.chat_template import Message

_TOGETHER = 8  # requests under way at a time

_Happening = tuple[int, Token | Done | DsliteError]


class RemoteCompletion:
    """A model of a server that answers prompts in a style."""

    load_s = 0.0

    def __init__(self, served: RemoteModelRef, style: CompletionOptions) -> None:
        self.name = self.key = served.ref.name
        self._model = RemoteModel(served.endpoint, served.ref.name)
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
        """What the server says, as it comes."""
        status = TerminalStatus()
        try:
            for event in self._model.generate(request, cancel):
                if isinstance(event, Prefilling):
                    status.show(reading(event))
                    continue
                status.clear()
                yield event
        finally:
            status.clear()

    def join(self, key: int, request: RemoteRequest) -> None:
        """Ask together with others."""
        self._joined.append((key, request))

    def together(self, cancel: threading.Event) -> Iterator[_Happening]:
        """What happens to the requests that joined: several at a time, each in a thread."""
        waiting: queue.SimpleQueue[tuple[int, RemoteRequest]] = queue.SimpleQueue()
        for joined in self._joined:
            waiting.put(joined)
        told: queue.SimpleQueue[_Happening | None] = queue.SimpleQueue()
        running = min(_TOGETHER, len(self._joined))
        self._joined = []
        for _ in range(running):
            threading.Thread(target=self._work, args=(waiting, told, cancel), daemon=True).start()
        while running:
            happening = told.get()
            if happening is None:
                running -= 1
            else:
                yield happening

    def _work(
        self,
        waiting: "queue.SimpleQueue[tuple[int, RemoteRequest]]",
        told: "queue.SimpleQueue[_Happening | None]",
        cancel: threading.Event,
    ) -> None:
        while not cancel.is_set():
            try:
                key, request = waiting.get_nowait()
            except queue.Empty:
                break
            try:
                for event in self._model.generate(request, cancel):
                    if not isinstance(event, Prefilling):
                        told.put((key, event))
            except DsliteError as error:
                told.put((key, error))
        told.put(None)
