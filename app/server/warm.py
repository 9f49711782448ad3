"""`serve --warm`: the served model answers commands of this user as well, over the socket of a warm engine."""

import threading
from collections.abc import Callable

from dslite.app.completion.warm_model import WarmModel
from dslite.app.server.worker import Worker
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.downloads.packed import locate_weights
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import DsliteError
from dslite.runtime.system.local_socket import has_local_sockets
from dslite.runtime.warm.driver import RequestDriver
from dslite.runtime.warm.idle import IdleTimer
from dslite.runtime.warm.key import EngineKey
from dslite.runtime.warm.server import EngineSocket, WarmServer


class WorkerDriver(RequestDriver):
    """Requests of commands in the scheduler of a server's worker."""

    def __init__(self, engine: Engine, worker: Worker) -> None:
        super().__init__(engine)
        self._worker = worker
        worker.guests = self

    def put(self, command: Callable[[Scheduler], None]) -> None:
        if not self._worker.alive:
            raise DsliteError("the engine of the server has failed", "start the server again")
        self._worker.put(command)


class WarmPlace:
    """The socket of a model that is served. A context: commands wait there while the model is loaded."""

    def __init__(self, ref: ModelRef, options: EngineOptions) -> None:
        """Raises DsliteError, also where an engine of the model runs already."""
        if not has_local_sockets():
            raise DsliteError("warm engines need Linux or macOS", "leave out --warm")
        key = EngineKey.of(ref, options)
        self._ref, self._weights = ref, options.weights
        self._socket = EngineSocket(key.name)
        if self._socket.listener is None:
            raise DsliteError(f"a warm engine of {ref.name} runs already", "dslite engine stop, or leave out --warm")
        self._server = WarmServer(self._socket.listener, key, IdleTimer(None))
        self._server.start()

    def __enter__(self) -> "WarmPlace":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def open(self, engine: Engine, worker: Worker) -> None:
        """Answer from now on, until the server ends or `dslite engine stop` ends this alone."""
        folder = locate_weights(self._ref, self._weights)
        self._server.ready(WarmModel(self._ref, folder, self._weights, engine, WorkerDriver(engine, worker)))
        threading.Thread(target=self._close_when_stopped, name="dslite-warm", daemon=True).start()

    def _close_when_stopped(self) -> None:
        self._server.wait()
        self._close()

    def _close(self) -> None:
        self._socket.close()
        self._server.close()
