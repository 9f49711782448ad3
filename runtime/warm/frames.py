"""Messages between a command and an engine: each a JSON object behind its length in four bytes.

Nothing but JSON is read, and no more of it than the limits say: what a peer sends can cost memory, never run code.
"""

import json
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dslite.runtime.nesting import is_deeper

MOST_BYTES = 64 << 20  # the longest prompt that any model takes has 20 MB
MOST_DEPTH = 100
_READ_BYTES = 1 << 16
_HEADER = 4


class ProtocolError(Exception):
    """A frame that no dslite sends."""


class Channel:
    """Frames over a connected socket. One thread may receive while another one sends."""

    def __init__(self, connection: socket.socket, *, most_bytes: int = MOST_BYTES) -> None:
        self.connection = connection
        self._most = most_bytes
        self._received = bytearray()
        self._sending = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError, and ProtocolError for a message that is too long."""
        data = json.dumps(message).encode("ascii")  # lone surrogates too, which UTF-8 has not
        if len(data) > self._most:
            raise ProtocolError(f"a message has {len(data):,} bytes; the most is {self._most:,}")
        with self._sending:
            self.connection.sendall(len(data).to_bytes(_HEADER, "big") + data)

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next message; None where the peer has closed the connection between two of them.

        Raises TimeoutError after `timeout` seconds without a byte (what came of a frame is kept), OSError,
        ProtocolError.
        """
        self.connection.settimeout(timeout)
        while (frame := self._take()) is None:
            data = self.connection.recv(_READ_BYTES)
            if not data:
                if self._received:
                    raise ProtocolError("the connection ended within a message")
                return None
            self._received += data
        return _parsed(frame)

    def close(self) -> None:
        """Close the connection; a thread that waits for it goes on."""
        with suppress(OSError):  # the peer did so before
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def _take(self) -> bytes | None:
        """The first whole frame of what was received, removed from it."""
        if len(self._received) < _HEADER:
            return None
        size = int.from_bytes(self._received[:_HEADER], "big")
        if size > self._most:
            raise ProtocolError(f"a message of {size:,} bytes is announced; the most is {self._most:,}")
        if len(self._received) < _HEADER + size:
            return None
        frame = bytes(self._received[_HEADER : _HEADER + size])
        del self._received[: _HEADER + size]
        return frame


def _parsed(frame: bytes) -> dict[str, Any]:
    try:
        value = json.loads(frame)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message is not JSON: {error}") from None
    if not isinstance(value, dict) or is_deeper(value, MOST_DEPTH):
        raise ProtocolError("a message is not an object, or nested too deep")
    return value
