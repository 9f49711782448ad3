"""The server process: its socket, its signals, and how it ends."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import uvicorn

from dslite.app.server.api import Api
from dslite.app.server.bounded_log import bound_log
from dslite.app.server.connections import protocol
from dslite.app.server.errors import ApiError
from dslite.app.server.limits import Limits
from dslite.app.terminal.signals import handled
from dslite.runtime.errors import DsliteError

_LAST_EVENT_S = 3  # for a client to take the end of an answer that the server cuts
_SECOND_SIGNAL_S = 1  # after which a second signal ends the process, whatever it does


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
    bound_log()
    caught = asyncio.run(_serve(api, listener, limits, ready))
    if api.worker.alive:  # in a step that takes long: Python cannot end a thread
        os._exit(128 + (caught or 0))
    return caught


def new_server(api: Api, limits: Limits) -> uvicorn.Server:
    """A server that does not run yet; `serve` of it runs it."""
    return _Server(
        uvicorn.Config(
            api.asgi,
            # Connections beyond the limit that find no idle one to take the place of get a 503.
            http=protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections + 1,
            timeout_keep_alive=int(limits.keep_alive_seconds),
            timeout_graceful_shutdown=int(limits.grace_seconds) + _LAST_EVENT_S,
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
        if len(caught) == 1:
            loop.call_later(limits.grace_seconds, api.worker.end_all, error)
        else:
            api.worker.end_all(error)
            loop.call_later(_SECOND_SIGNAL_S, os._exit, 128 + number)

    with handled(lambda number, _: loop.call_soon_threadsafe(catch, number)):
        starting = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not starting.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await starting
    return caught[0] if caught else None


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: ours let answers end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
