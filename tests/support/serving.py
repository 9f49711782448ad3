"""`dslite serve` as a shell starts it, and its API inside the test's own process where a test sets the limits.

with serving("demo", "--dtype", "float32") as server:
    client = server.openai()
"""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from dslite.app.server.api import Api
from dslite.app.server.limits import Limits
from dslite.app.server.requests import ServedModel
from dslite.app.server.server import bind, new_server
from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.text.chat_template import ChatTemplate

DSLITE = [sys.executable, "-c", "from dslite.app.cli import main; main()"]


@dataclass
class Server:
    """A server that answers. `said` is what it wrote, line by line."""

    url: str
    process: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)
    clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").removesuffix("/v1").rpartition(":")
        return host, int(port)

    def openai(self, **settings: Any) -> openai.OpenAI:
        """A client that does not try again; it is closed with the server."""
        client = openai.OpenAI(**{"base_url": self.url, "api_key": "none", "max_retries": 0, **settings})
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(self.address, timeout=30)

    def raw(self, request: bytes) -> bytes:
        """All that comes back for some bytes, to the end of the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, JSON and headers of a response. `path` begins at the root; a body that is not bytes is made JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        content = {} if data is None else {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, data, {**content, **(headers or {})})
            response = connection.getresponse()
            raw = response.read()
            return response.status, json.loads(raw) if raw else None, response.headers

    def rss(self) -> int:
        """Bytes of memory that the process holds."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@contextlib.contextmanager
def serving(model: str | Path, *flags: str, env: dict[str, str] | None = None) -> Iterator[Server]:
    """`dslite serve` on a free port."""
    process = subprocess.Popen(
        [*DSLITE, "serve", "-m", str(model), "--port", "0", "--device", "cpu", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("serving "):
            break
    reader = threading.Thread(target=said.extend, args=(process.stderr,), daemon=True)
    try:
        assert "".join(said[-1:]).startswith("serving "), "".join(said)
        reader.start()
        with contextlib.closing(Server(said[-1].split()[-1], process, said)) as server:
            yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


@contextlib.contextmanager
def serving_here(engine: Engine, limits: Limits | None = None, **access: Any) -> Iterator[Server]:
    """The API over an engine of this process, in a thread; `access` are the key, hosts and origins of Api."""
    limits = limits or Limits()
    api = Api(ServedModel(engine, ("tiny", "deepseek-chat"), {}, ChatTemplate(engine.tokenizer)), limits, **access)
    server = new_server(api, limits)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        with contextlib.closing(Server(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")) as started:
            yield started
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Server]:
    """The demo model, served in float32."""
    with serving("demo", "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="session")
def demo_engine() -> Engine:
    """The demo model in this process, in float32."""
    return open_engine(locate(parse_model("demo")), EngineOptions(device="cpu", dtype="float32"))
