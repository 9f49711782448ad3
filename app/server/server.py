"""The process: a socket, signals, an end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dslite.app.server.api import Api
from dslite.app.server.errors import ApiError
from dslite.app.server.limits import Limits
from dslite.runtime.errors import DsliteError

_KEEP_ALIVE_S = 15  # longer than clients keep an idle connection (5 s), so that none closes under a request
_LAST_WORDS_S = 3  # for a client to take the end of an answer that the server cuts


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises DsliteError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise DsliteError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}", "choose another --port or --host"
        ) from None


def serve(api: Api, listener: socket.socket, limits: Limits, ready: Callable[[], None]) -> int | None:
    """Answer until a signal comes; return its number."""
    return asyncio.run(_serve(api, listener, limits, ready))


def new_server(api: Api, limits: Limits) -> uvicorn.Server:
    """A server that does not run yet; `serve` of it runs it."""
    return _Server(
        uvicorn.Config(
            api.asgi,
            http=_punctual(limits.head_seconds),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(limits.grace_seconds) + _LAST_WORDS_S,
        )
    )


async def _serve(api: Api, listener: socket.socket, limits: Limits, ready: Callable[[], None]) -> int | None:
    server = new_server(api, limits)
    loop = asyncio.get_running_loop()
    caught: list[int] = []

    def catch(number: int) -> None:
        caught.append(number)
        error = ApiError(503, "the server is shutting down", code="shutting_down")
        server.should_exit = True
        api.worker.close(error)
        # A second signal waits no longer.
        loop.call_later(limits.grace_seconds if len(caught) == 1 else 0, api.worker.end_all, error)

    with _signals(loop, catch):
        starting = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not starting.done():
            await asyncio.sleep(0.01)
        ready()
        await starting
    return caught[0] if caught else None


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, catch: Callable[[int], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        signal.signal(number, lambda number, _: loop.call_soon_threadsafe(catch, number))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: ours let answers end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _punctual(seconds: float) -> type[H11Protocol]:
    """A protocol that closes connections which ask nothing: uvicorn alone would keep half a request for ever."""

    class Punctual(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._checked: object = self
            self._check()

        def _check(self) -> None:
            if self.transport.is_closing():
                return
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._checked is self.cycle:
                self.transport.close()
                return
            self._checked = self.cycle if idle else self
            self.loop.call_later(seconds, self._check)

    return Punctual
