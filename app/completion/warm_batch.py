"""A batch over a warm engine: each request has a connection and a thread, and the engine decodes them together."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dslite.app.completion.protocol import Answer, RequestSource, RequestT
from dslite.model.errors import DsliteError
from dslite.runtime.events import Prefilling
from dslite.runtime.warm.client import EngineLostError, EngineRefusedError, WarmClient

_LOOK_S = 0.05
_MOST_AT_ONCE = 16  # as many as the engine decodes together


@dataclass
class WarmAnswer:
    """An answer, with the memory and the counters that belong to it."""

    answer: Answer = field(default_factory=Answer)
    memory: Mapping[str, int] = field(default_factory=dict)
    experts: Mapping[str, int] = field(default_factory=dict)


_Result = WarmAnswer | DsliteError | EngineLostError


class WarmBatch:
    """Answers the requests of one batch, until the engine is lost."""

    def __init__(self, connect: Callable[[], WarmClient | None], prepare: Callable[[WarmClient, Any], object]) -> None:
        """`connect` gives further connections; `prepare` has the engine make a request. Both run in any thread."""
        self.lost: list[tuple[int, Any]] = []  # requests without a result, where the engine was lost
        self.fault: EngineLostError | None = None  # how it was lost
        self._connect = connect
        self._prepare = prepare
        self._idle: queue.SimpleQueue[WarmClient] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, _Result]] = queue.SimpleQueue()

    def run(
        self, requests: RequestSource[RequestT], cancel: threading.Event
    ) -> Iterator[tuple[int, WarmAnswer | DsliteError]]:
        """Each request's result by its key, as they end."""
        running: dict[int, RequestT] = {}
        try:
            while True:
                while len(running) < _MOST_AT_ONCE and self.fault is None:
                    if (taken := requests.take(wait=not running)) is None:
                        break
                    key, running[key] = taken
                    threading.Thread(target=self._work, args=(*taken, cancel), daemon=True).start()
                if not running:
                    return
                try:
                    key, result = self._results.get(timeout=_LOOK_S)
                except queue.Empty:
                    continue  # a line may have come meanwhile
                request = running.pop(key)
                if isinstance(result, EngineLostError):
                    self.fault = result
                    self.lost.append((key, request))
                else:
                    yield key, result
        finally:
            while not self._idle.empty():
                self._idle.get().close()

    def _work(self, key: int, request: Any, cancel: threading.Event) -> None:
        """The thread must not end without a result."""
        result: _Result
        try:
            client = self._client()
            try:
                self._prepare(client, request)
                result = self._answer(client, cancel)
                self._idle.put(client)
            except DsliteError as error:
                self._idle.put(client)  # it is the request's
                result = error
            except BaseException:
                client.close()
                raise
        except EngineLostError as error:
            result = error
        except (EngineRefusedError, DsliteError) as error:
            result = EngineLostError(str(error))
        except Exception as error:
            result = EngineLostError(f"{type(error).__name__}: {error}")
        self._results.put((key, result))

    def _client(self) -> WarmClient:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            client = self._connect()
        if client is None:
            raise EngineLostError("it has ended")
        return client

    def _answer(self, client: WarmClient, cancel: threading.Event) -> WarmAnswer:
        made = WarmAnswer()
        for event in client.answer(cancel):
            if not isinstance(event, Prefilling):
                made.answer.add(event)
        made.memory, made.experts = client.memory, client.experts
        return made
