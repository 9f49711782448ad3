"""Writing answers to clients, whole and as server-sent events; a client that disconnects ends the work at once."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dslite.app.server.errors import ApiError, internal
from dslite.app.server.limits import Limits
from dslite.app.server.responses import ResponseFormatter
from dslite.app.server.worker import GenerationStream
from dslite.runtime.events import Prefilling

_log = logging.getLogger("dslite.server")

T = TypeVar("T")


def to_json(value: Any) -> bytes:
    """One line of ASCII: any text that a client sent can be sent back, lone surrogates too."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(to_json(value), status, headers)


def error_response(error: ApiError) -> Json:
    return Json(error.body, error.status, error.headers)


async def until_disconnected(work: Awaitable[T], receive: Receive) -> T:
    """The result of some work. Raises ClientDisconnect where the client disconnects before it is done."""
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, disconnected):
            task.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def collect(stream: GenerationStream, formatter: ResponseFormatter, seconds: float) -> None:
    """Take all events of a stream. Raises ApiError."""
    try:
        async with asyncio.timeout(seconds):
            async for choice, event in stream.events():
                formatter.take(choice, event)
    except TimeoutError:
        raise _late(seconds) from None


def _late(seconds: float) -> ApiError:
    return ApiError(504, f"the answer was not ready within {seconds:g} seconds", code="timeout")


class EventStream(Response):
    """An answer as server-sent events, ended by [DONE] (where events have names, by the last of them), or by an
    event with the error where one occurs.

    Comments are sent only after seconds of silence, to keep proxies and clients from closing the connection: simple
    parsers take every line for data, and most answers come sooner.
    """

    def __init__(self, stream: GenerationStream, formatter: ResponseFormatter, limits: Limits) -> None:
        super().__init__(
            status_code=200,
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"},
        )
        self.headers["X-Accel-Buffering"] = "no"  # nginx would collect the events
        del self.headers["Content-Length"]
        self._stream, self._formatter, self._limits = stream, formatter, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnected(self._write(send), receive)
        except ClientDisconnect:
            pass
        finally:
            self._stream.close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._write_chunks(send)
        except TimeoutError:
            await self._fail(send, _late(self._limits.seconds))
        except ApiError as error:
            await self._fail(send, error)
        except Exception:
            _log.exception("the stream of request %s failed", self.headers.get("X-Request-Id"))
            await self._fail(send, internal())
        else:
            await _send(send, b"" if self._formatter.named_events else b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, send: Send, error: ApiError) -> None:
        await _send(send, self._event(self._formatter.failure(error)))

    def _event(self, value: dict[str, Any]) -> bytes:
        name = b"event: " + value["type"].encode("ascii") + b"\n" if self._formatter.named_events else b""
        return name + b"data: " + to_json(value) + b"\n\n"

    async def _write_chunks(self, send: Send) -> None:
        silence = self._limits.silence_seconds
        unsent = b"".join(map(self._event, self._formatter.opening()))
        data_at = time.monotonic()
        while not self._stream.ended:
            item = await self._stream.next(silence or None)
            if item is None:
                await _send(send, b": waiting\n\n")
                continue
            choice, event = item
            if isinstance(event, Prefilling) and time.monotonic() - data_at >= silence:
                unsent += _comment(event)
            unsent += b"".join(map(self._event, self._formatter.take(choice, event)))
            if unsent and self._stream.is_empty:  # events that came together are sent together
                await _send(send, unsent)
                unsent, data_at = b"", data_at if isinstance(event, Prefilling) else time.monotonic()
        await _send(send, unsent + b"".join(map(self._event, self._formatter.closing())))


def _comment(event: Prefilling) -> bytes:
    return f": reading {event.done:.0f} of {event.total}, {event.cached} cached\n\n".encode("ascii")


async def _send(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})
