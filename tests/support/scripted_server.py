"""An HTTP server that answers each POST with the next entry of a script, word for word.

with ScriptedServer([sse({"choices": [...]}), DROP]) as server:
    Endpoint(server.url)
"""

import json
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

HANG = b"\0hang"  # say no more, and keep the connection
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def events(*chunks: dict[str, Any] | str, whole: bool = True) -> list[bytes]:
    """A streamed answer: objects as events, texts as they are; without `whole` the connection breaks behind them."""
    texts = [chunk if isinstance(chunk, str) else f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    pieces = [f"{len(text.encode()):x}\r\n".encode() + text.encode() + b"\r\n" for text in texts]
    return [HEAD, *pieces, *([END] if whole else [])]


def delta(text: str | None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a chat answer."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def refusal(status: int, body: str) -> list[bytes]:
    """An answer that is an error."""
    return [f"HTTP/1.1 {status} No\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()]


@dataclass
class ScriptedServer:
    """Serves one connection after the other.

    `asked` are the POSTs, `received` is set by the first; `left` is set when a client hangs up a HANG.

    `models` are the entries of GET /v1/models; None: the server has no such list.
    """

    script: Sequence[Sequence[bytes]]
    asked: list[bytes] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    received: threading.Event = field(default_factory=threading.Event)
    models: Sequence[dict[str, Any]] | None = None

    def __enter__(self) -> "ScriptedServer":
        self._ended = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        with suppress(OSError):
            socket.create_connection(self._listener.getsockname()[:2]).close()  # wakes accept
        self._thread.join()
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def _list(self) -> bytes:
        if self.models is None:
            return refusal(404, "")[0]
        body = json.dumps({"object": "list", "data": list(self.models)})
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body.encode())}\r\n\r\n{body}".encode()

    def _run(self) -> None:
        script = list(self.script)
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if self._ended or not (request := _read_request(connection)):
                    return
                if request.startswith(b"GET"):
                    connection.sendall(self._list())
                    continue
                self.asked.append(request)
                self.received.set()
                answer = script.pop(0) if script else []
                for piece in answer:
                    if piece != HANG:
                        connection.sendall(piece)
                        continue
                    while connection.recv(65536):
                        pass
                    self.left.set()


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    wanted = int(lengths[0].split(b":")[1]) if lengths else 0
    while len(body) < wanted:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body
