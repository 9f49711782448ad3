"""The engine's side of the socket: accepts commands of the same user and answers their requests.

A connection has two threads: one reads what the command sends, so that a cancel or its end is seen at any time; the
other one sends, so that a command that does not read stops no other's answer.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from dslite.runtime.errors import DsliteError
from dslite.runtime.events import LoadingEvent
from dslite.runtime.system.local_socket import hold_lock, peer_user, user_id
from dslite.runtime.warm.address import make_folder, socket_file
from dslite.runtime.warm.connection import BEAT_S, Connection, LoadedEngine
from dslite.runtime.warm.frames import Channel
from dslite.runtime.warm.idle import IdleTimer
from dslite.runtime.warm.key import EngineKey
from dslite.runtime.warm.messages import event_object

MOST_CONNECTIONS = 256
_BACKLOG = 256
_LAST_WORDS_S = 2.0

_log = logging.getLogger(__name__)


class EngineSocket:
    """The socket of an engine, and the lock that only one process has. A context; `listener` None: another has it."""

    def __init__(self, name: str) -> None:
        """Raises RuntimeFolderError, OSError."""
        folder = make_folder()
        self.listener: socket.socket | None = None
        self._file = socket_file(folder, name)
        self._lock = hold_lock(folder / f"{name}.lock")
        if self._lock is None:
            return
        try:
            self.listener = self._listen()
        except OSError:
            os.close(self._lock)
            raise

    def _listen(self) -> socket.socket:
        with suppress(FileNotFoundError):
            self._file.unlink()  # it is stale: who listened there would have the lock
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self._file))
            self._file.chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    def __enter__(self) -> "EngineSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the place to another engine."""
        if self.listener is not None and self._lock is not None:
            with suppress(OSError):
                self._file.unlink()
            with suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self.listener.close()
            os.close(self._lock)
            self._lock = None


@dataclass
class _State:
    """What connections wait for: progress of the load, then the engine or the error; at last the end."""

    loading: dict[str, Any] = field(default_factory=lambda: {"event": "Loading", "done_bytes": 0, "total_bytes": 0})
    loaded: LoadedEngine | None = None
    failed: DsliteError | None = None
    ended: bool = False


class WarmServer:
    """One engine at one socket. Its connections are served from `start` on, also while the model is loaded."""

    def __init__(self, listener: socket.socket, key: EngineKey, idle: IdleTimer) -> None:
        self.key = key
        self.idle = idle
        self.model = str(key.settings["model"])
        self._listener = listener
        self._changed = threading.Condition()
        self._state = _State()
        self._connections: set[Connection] = set()

    def start(self) -> None:
        threading.Thread(target=self._accept, name="dslite-accept", daemon=True).start()

    def report(self, event: LoadingEvent) -> None:
        """Progress of the load, for those who wait for it."""
        self._change(loading=event_object(event))

    def ready(self, loaded: LoadedEngine) -> None:
        """The model is loaded: requests are answered."""
        with self.idle.working():  # the time of loading does not count as idle
            self._change(loaded=loaded)

    def fail(self, error: DsliteError) -> None:
        """The model cannot be loaded."""
        self._change(failed=error)

    def end(self) -> None:
        """Let `wait` return."""
        self._change(ended=True)

    def nudge(self) -> None:
        """Let `wait` look at the time again."""
        self._change()

    def wait(self) -> None:
        """Return where the engine is to end: it was idle for long enough, was stopped, or failed."""
        with self._changed:
            while not self._state.ended:
                left = self.idle.left_s
                if left == 0:
                    return
                self._changed.wait(left)

    def close(self) -> None:
        """Take no more connections, and end those that there are. Requests that are not answered go on elsewhere."""
        self._change(ended=True)
        for connection in list(self._connections):
            connection.close()

    def wait_until_left(self, seconds: float) -> None:
        """Wait for the connections to end, which they do where the model cannot be loaded."""
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, seconds)

    def until_loaded(self, channel: Channel) -> LoadedEngine | None:
        """Send the progress of the load until it is over. None where the engine ends. Raises DsliteError, OSError."""
        while True:
            with self._changed:
                state = self._state
                if state.failed is not None:
                    raise state.failed
                if state.loaded is not None or state.ended:
                    return state.loaded
                shown = state.loading
            channel.send(shown)
            with self._changed:
                if self._state.loading is shown and not self._is_over():
                    self._changed.wait(BEAT_S)

    @property
    def loaded(self) -> LoadedEngine | None:
        return self._state.loaded

    def description(self) -> dict[str, Any]:
        """What `dslite engine status` shows."""
        settings = self.key.settings
        return {
            "pid": os.getpid(),
            "model": self.model,
            "weights": settings["weights"],
            "dtype": settings["dtype"],
            "device": settings["device"],
            "loaded": self._state.loaded is not None,
            "idle_s": round(self.idle.idle_s, 1),
            "keep_alive_s": self.idle.most_s,
        }

    def _is_over(self) -> bool:
        return self._state.loaded is not None or self._state.failed is not None or self._state.ended

    def _change(self, **values: Any) -> None:
        with self._changed:
            for name, value in values.items():
                setattr(self._state, name, value)
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:  # the listener was closed; else an engine that no client reaches is of no use
                self.end()
                return
            if peer_user(accepted) != user_id() or len(self._connections) >= MOST_CONNECTIONS:
                _log.warning("a connection of another user, or one too many, was refused")
                accepted.close()
                continue
            connection = Connection(self, Channel(accepted), self._left)
            self._connections.add(connection)
            connection.start()

    def _left(self, connection: Connection) -> None:
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()


def serve(server: WarmServer, load: Callable[[Callable[[LoadingEvent], None]], LoadedEngine]) -> None:
    """Load the model, then answer until the engine is to end. Raises DsliteError where it cannot be loaded."""
    server.start()
    try:
        loaded = load(server.report)
    except DsliteError as error:
        server.fail(error)
        server.wait_until_left(_LAST_WORDS_S)
        raise
    server.ready(loaded)
    server.wait()
