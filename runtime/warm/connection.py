"""A command that is connected to an engine: what it asks, one thing after the other, and what it gets.

Where one of its requests was private, the engine forgets all that it holds of requests when the connection ends.

    command → engine                             engine → command
    {"op": "hello", "settings", "files"}         Loading events, then {"ok": description} or {"refused": reason}
    {"op": "prepare", "private", "complete"}     {"ok": {"params", "prompt_tokens"}}; or "chat" in place of "complete"
    {"op": "resume", "conversation"}             {"ok": null}
    {"op": "answer"}                             events; the last one, Done, with "memory" and "experts"
    {"op": "cancel"}                             nothing: the answer ends as interrupted
    {"op": "keep", "conversation"}               {"ok": null}
    {"op": "status"}, {"op": "stop"}             {"ok": description}

In place of "ok" may come {"error", "message", "remedy"}: a DsliteError, after which the connection goes on. A message
that no dslite sends ends the connection.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Event, Token
from dslite.runtime.warm.frames import Channel, ProtocolError
from dslite.runtime.warm.messages import error_object, event_object

if TYPE_CHECKING:
    from dslite.runtime.engine.request import Request
    from dslite.runtime.text.message import AnswerSpacing
    from dslite.runtime.warm.driver import ActiveRequest, AnswerEnd, RequestDriver
    from dslite.runtime.warm.idle import IdleTimer
    from dslite.runtime.warm.key import EngineKey

BEAT_S = 2.0  # between signs of life while nothing else is sent
_BEAT = {"beat": True}

_log = logging.getLogger(__name__)


class LoadedEngine(Protocol):
    """A loaded model, and what of a request depends on it."""

    @property
    def driver(self) -> "RequestDriver": ...

    def request(self, raw: Mapping[str, Any]) -> "Request":
        """A request from its JSON, checked to fit. May be called by several threads. Raises DsliteError."""
        ...

    def call(self, raw: Mapping[str, Any]) -> Any:
        """What a client asks of the model besides answers. Raises DsliteError."""
        ...


class EngineHost(Protocol):
    """What connections need of their server."""

    key: "EngineKey"
    idle: "IdleTimer"

    @property
    def loaded(self) -> LoadedEngine | None: ...

    def until_loaded(self, channel: Channel) -> LoadedEngine | None: ...

    def description(self) -> dict[str, Any]: ...

    def end(self) -> None: ...


class Connection:
    """One client. It may be closed by any thread."""

    def __init__(self, host: EngineHost, channel: Channel, on_end: Callable[["Connection"], object]) -> None:
        self._host = host
        self._channel = channel
        self._on_end = on_end
        self._outbox: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._greeted = False
        self._private = False
        self._request: Request | None = None
        self._answered: tuple[int, ...] = ()  # the tokens of the last prompt and its answer
        self._active: ActiveRequest | None = None
        self._spacing: AnswerSpacing | None = None
        self._work = ExitStack()  # holds the engine awake while an answer is under way
        self._handling = False

    def start(self) -> None:
        for target in (self._read, self._write):
            threading.Thread(target=target, name="dslite-connection", daemon=True).start()

    def close(self) -> None:
        self._channel.close()

    # ---- the thread that reads ----

    def _read(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                self._handle(message)
        except (OSError, ProtocolError, KeyError, TypeError, ValueError, AttributeError) as error:
            _log.debug("a connection ends: %s: %s", type(error).__name__, error)
        except Exception:
            _log.exception("a connection failed")
        finally:
            self._outbox.put(None)
            self._channel.close()
            self._end()
            self._on_end(self)

    def _end(self) -> None:
        """Stop what is under way. Of private requests nothing stays in memory."""
        active = self._active
        if self._private:
            with suppress(DsliteError):  # it has failed
                self._loaded.driver.forget(active)
            self._work.close()
        elif active is not None:
            active.cancel.set()

    def _handle(self, message: Mapping[str, Any]) -> None:
        handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {
            "hello": self._hello,
            "status": self._status,
            "stop": self._stop,
        }
        if self._greeted:
            handlers |= {
                "prepare": self._prepare,
                "answer": self._answer,
                "cancel": self._cancel,
                "resume": self._resume,
                "keep": self._keep,
                "call": self._call,
            }
        self._handling = True
        try:
            handlers[message["op"]](message)
        except DsliteError as error:
            self._outbox.put(error_object(error))
        finally:
            self._handling = False

    def _status(self, _: Mapping[str, Any]) -> None:
        self._reply(self._host.description())

    def _stop(self, _: Mapping[str, Any]) -> None:
        self._reply(self._host.description())
        self._host.end()

    def _hello(self, message: Mapping[str, Any]) -> None:
        key = self._host.key
        if message["settings"] != dict(key.settings):
            self._outbox.put({"refused": "it runs with other settings"})
        elif message["files"] != key.files:
            self._outbox.put({"refused": "the files of the model have changed since it was loaded"})
        elif self._host.until_loaded(self._channel) is not None:
            self._greeted = True
            self._reply(self._host.description())

    def _prepare(self, message: Mapping[str, Any]) -> None:
        self._private = self._private or bool(message["private"])
        with self._host.idle.working():
            self._request = request = self._loaded.request(message)
        self._reply({"params": asdict(request.params), "prompt_tokens": len(request.prompt_ids)})

    def _answer(self, _: Mapping[str, Any]) -> None:
        from dslite.runtime.text.message import AnswerSpacing
        from dslite.runtime.warm.driver import ActiveRequest

        request, self._request = self._request, None
        if request is None or self._active is not None:
            raise ProtocolError("an answer was asked for without a request, or beside another one")
        self._work.enter_context(self._host.idle.working())
        self._spacing = AnswerSpacing(request.spaces)
        self._active = ActiveRequest(request, self._take, self._private)
        self._loaded.driver.submit(self._active)

    def _cancel(self, _: Mapping[str, Any]) -> None:
        if (active := self._active) is not None:
            active.cancel.set()

    def _resume(self, message: Mapping[str, Any]) -> None:
        conversation, request = str(message["conversation"]), self._request
        if request is None:
            raise ProtocolError("there is no request to resume for")
        with self._host.idle.working():
            self._loaded.driver.call(lambda engine: engine.resume(conversation, request.prompt_ids))
        self._reply(None)

    def _keep(self, message: Mapping[str, Any]) -> None:
        conversation, ids = str(message["conversation"]), self._answered
        with self._host.idle.working():
            self._loaded.driver.call(lambda engine: engine.prefix_cache.save(conversation, ids))
        self._reply(None)

    def _call(self, message: Mapping[str, Any]) -> None:
        with self._host.idle.working():
            self._reply(self._loaded.call(message))

    @property
    def _loaded(self) -> LoadedEngine:
        loaded = self._host.loaded
        assert loaded is not None  # as it was greeted
        return loaded

    def _reply(self, value: Any) -> None:
        self._outbox.put({"ok": value})

    # ---- the engine's thread ----

    def _take(self, event: "Event | AnswerEnd | DsliteError") -> None:
        """An event of the answer that is under way."""
        from dslite.runtime.warm.driver import AnswerEnd

        assert self._active is not None
        assert self._spacing is not None
        if isinstance(event, AnswerEnd):
            if not self._private:
                self._answered = (*self._active.request.prompt_ids, *event.done.token_ids)
            done = event_object(self._spacing.strip(event.done))
            self._finish({**done, "memory": event.memory, "experts": event.experts})
        elif isinstance(event, DsliteError):
            self._finish(error_object(event))
        else:
            self._outbox.put(event_object(self._spacing.strip(event) if isinstance(event, Token) else event))

    def _finish(self, message: Mapping[str, Any]) -> None:
        self._active = self._spacing = None
        self._work.close()
        self._outbox.put(message)

    # ---- the thread that sends ----

    def _write(self) -> None:
        while True:
            try:
                message = self._outbox.get(timeout=BEAT_S)
            except queue.Empty:
                if not self._handling and self._active is None:
                    continue
                message = _BEAT
            if message is None:
                return
            try:
                self._channel.send(message)
            except (OSError, ProtocolError):
                self._channel.close()  # the thread that reads ends, and with it the answer
                return
