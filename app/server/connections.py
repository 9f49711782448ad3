"""Connections that hold nothing up: idle ones make room, and an unfinished request is waited for only so long.

uvicorn bounds the number of connections and the time between two requests, but keeps a connection that never sends a
request, or half of one, for ever: as many of these as it admits would lock everyone out.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dslite.app.server.errors import invalid
from dslite.app.server.limits import Limits
from dslite.app.server.streaming import to_json


class IdleTimeoutProtocol(H11Protocol):
    """HTTP/1.1 with bounds on idle connections. A subclass for each server holds its limits: see `protocol`."""

    limits: Limits
    idle: "dict[IdleTimeoutProtocol, None]"  # connections without a request, the one idle longest first

    def connection_made(self, transport: Any) -> None:
        self._head_timer: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections and self.idle:
            oldest = next(iter(self.idle))
            del self.idle[oldest]
            self.connections.discard(oldest)  # at once: asyncio reports the end of a connection later
            oldest.transport.abort()
        self._note_state(expects_head=True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_state(expects_head=True)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_state(expects_head=bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.idle.pop(self, None)
        self._stop_head_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP/1.1; where a response was sent already, nothing may follow it."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = to_json(invalid("the request is not HTTP/1.1").body)
            length = str(len(body)).encode("ascii")
            headers = [(b"Content-Type", b"application/json"), (b"Content-Length", length), (b"Connection", b"close")]
            events = h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _note_state(self, *, expects_head: bool) -> None:
        """Keep the list of idle connections, and the timer for the head of a request that has begun to come."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle.pop(self, None)
            self._stop_head_timer()
            return
        self.idle.setdefault(self)
        if expects_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def protocol(limits: Limits) -> type[IdleTimeoutProtocol]:
    """The protocol of one server."""
    return type("_Protocol", (IdleTimeoutProtocol,), {"limits": limits, "idle": {}})
