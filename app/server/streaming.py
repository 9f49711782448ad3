"""Writing to a client, and noticing at once when it has gone."""

import asyncio
import json
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dslite.app.server.errors import ApiError
from dslite.app.server.responses import ResponseFormatter
from dslite.app.server.worker import GenerationStream
from dslite.runtime.events import Prefilling

T = TypeVar("T")


def to_json(value: Any) -> bytes:
    """One line, in ASCII: whatever a client sent can be sent back, lone surrogates too."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(to_json(value), status, headers)


def error_response(error: ApiError) -> Json:
    return Json(error.body, error.status, error.headers)


async def unless_gone(work: Awaitable[T], receive: Receive) -> T:
    """Await some work, but no longer than the client waits for it. Raises ClientDisconnect."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(answering: GenerationStream, shape: ResponseFormatter, seconds: float) -> None:
    """Take an answer to its end. Raises ApiError."""
    try:
        async with asyncio.timeout(seconds):
            async for choice, event in answering.events():
                shape.take(choice, event)
    except TimeoutError:
        raise _late(seconds) from None


def _late(seconds: float) -> ApiError:
    return ApiError(504, f"the answer was not ready within {seconds:g} seconds", code="timeout")


class EventStream(Response):
    """An answer as server-sent events, ended by [DONE]; what goes wrong on the way is an event, too."""

    def __init__(self, answering: GenerationStream, shape: ResponseFormatter, seconds: float) -> None:
        self._answering, self._shape, self._seconds = answering, shape, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(self._write(send), receive)
        except ClientDisconnect:
            pass
        finally:
            self._answering.close()

    async def _write(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async with asyncio.timeout(self._seconds):
                await self._write_chunks(send)
        except TimeoutError:
            await _send(send, _event(_late(self._seconds).body))
        except ApiError as error:
            await _send(send, _event(error.body))
        else:
            await _send(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write_chunks(self, send: Send) -> None:
        waiting = b"".join(map(_event, self._shape.opening()))
        async for choice, event in self._answering.events():
            if isinstance(event, Prefilling):
                waiting += _comment(event)  # so that no proxy and no client takes a long prompt for silence
            waiting += b"".join(map(_event, self._shape.take(choice, event)))
            if waiting and self._answering.waits:  # what came together goes together
                await _send(send, waiting)
                waiting = b""
        await _send(send, waiting + b"".join(map(_event, self._shape.closing())))


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _comment(event: Prefilling) -> bytes:
    return f": reading {event.done:.0f} of {event.total}, {event.cached} cached\n\n".encode("ascii")


async def _send(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})
