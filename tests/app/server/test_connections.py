"""Connections that send nothing, or half a request, take nothing from the others."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving, serving_here

from dslite.app.server.limits import Limits
from dslite.runtime.engine.engine import Engine

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("connections"), tiny_config()), context=200)


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:
        yield lambda **limits: stack.enter_context(serving_here(engine, Limits(**limits)))


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


def test_connections_are_kept_longer_than_clients_keep_them() -> None:
    assert Limits().keep_alive_seconds >= 75


@pytest.mark.parametrize("begun", [b"", b"GET /hea", HEAD, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_as_many_idle_connections_as_there_may_be_lock_nobody_out(start: Any, begun: bytes) -> None:
    """Fresh ones, half heads, and answered ones that stay open: the one idle longest makes room."""
    server = start(connections=12, head_seconds=3600, keep_alive_seconds=3600)
    with ExitStack() as stack:
        for _ in range(40):
            connection = stack.enter_context(server.connect())
            connection.sendall(begun)
            if begun.endswith(b"\r\n\r\n"):
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        for path in ("/health", "/v1/models"):
            assert server.request("GET", path)[0] == 200
        body = {"prompt": "hi", "max_tokens": 1}
        assert server.request("POST", "/v1/completions", body)[0] == 200


def test_a_connection_in_use_is_not_closed_for_another(start: Any) -> None:
    server = start(connections=4, head_seconds=3600)
    with ExitStack() as stack:
        slow = stack.enter_context(server.connect())
        slow.sendall(HEAD + b"Content-Length: 30\r\nExpect: 100-continue\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 100 ")  # its body is being read
        for _ in range(10):
            stack.enter_context(server.connect())
        assert server.request("GET", "/health")[0] == 200  # all of them have been admitted
        slow.sendall(b'{"prompt": "hi", "max_tokens":')
        assert slow.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_slow_bodies_give_way_to_others(start: Any) -> None:
    """Of the bodies that are being read, the one that has taken longest ends for a further one."""
    server = start(bodies=3, body_seconds=3600)
    with ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(3)]
        for connection in slow:
            connection.sendall(HEAD + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")  # the server reads the body
            connection.sendall(b'{"p')
        assert server.request("POST", "/v1/completions", {"prompt": "hi", "max_tokens": 1})[0] == 200
        assert slow[0].recv(65536).startswith(b"HTTP/1.1 408 ")
        slow[2].sendall(b'":"h"}')
        assert slow[2].recv(65536).startswith(b"HTTP/1.1 400 ")


NOT_HTTP = {
    "a TLS client": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(160),
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 3\r\n\r\nhello",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "no Host": b"GET /health HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "a compressed transfer": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a chunk without a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("request_bytes", NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_not_http_is_refused_in_the_shape_of_all_errors(server: Server, request_bytes: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(request_bytes)
        answer = connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["message"] == "the request is not HTTP/1.1"


@pytest.mark.parametrize("behind", [b"zz\r\n", b"-1\r\n", b"\0\0\0\0\r\n"])
def test_nothing_follows_a_response_whose_request_breaks_behind_it(
    server: Server, caplog: pytest.LogCaptureFixture, behind: bytes
) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD.replace(b"application/json", b"text/plain") + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = connection.recv(65536)
        connection.sendall(behind)
        answer += b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 415 ")
    assert answer.endswith(b"}")
    assert not [record for record in caplog.records if record.exc_info]


def test_bodies_together_hold_a_bounded_part_of_memory(start: Any) -> None:
    server = start(held_bytes=100_000)
    with ExitStack() as stack:
        slow = stack.enter_context(server.connect())
        slow.sendall(HEAD + b"Content-Length: 90001\r\nExpect: 100-continue\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 100 ")
        slow.sendall(b" " * 90_000)
        statuses = set()
        while 503 not in statuses:  # until the server has taken what was sent
            statuses.add(server.request("POST", "/v1/completions", b" " * 20_000 + b"{}")[0])
        assert statuses <= {400, 503}
        slow.sendall(b"{")
        assert slow.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert server.request("POST", "/v1/completions", b" " * 90_000 + b"{}")[0] == 400


def test_a_connection_waits_for_its_next_request_longer_than_for_a_head(start: Any) -> None:
    """The time of a head begins with its first byte, not with the last answer."""
    server = start(head_seconds=0.2, keep_alive_seconds=3600)
    with server.connect() as waiting, server.connect() as half:
        for connection in (waiting, half):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_health(connection)
        half.sendall(b"GET /hea")
        assert recv_to_the_end(half) == b""
        waiting.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_health(waiting)


def read_health(connection: socket.socket) -> bool:
    """Read the answer to GET /health to its end."""
    came = b""
    while not came.endswith(b"}"):
        came += connection.recv(65536)
    return came.startswith(b"HTTP/1.1 200")


def recv_to_the_end(connection: socket.socket) -> bytes:
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


def test_what_clients_do_wrong_fills_no_log() -> None:
    """One line for each kind of warning, in words that are of use."""
    upgrade = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with serving("demo") as server:
        for _ in range(9):
            assert server.raw(upgrade).startswith(b"HTTP/1.1 200")
            assert server.raw(b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert server.process is not None
        server.process.terminate()
        server.process.wait()
    said = [line for line in server.said if not line.startswith("serving ")]
    assert len(said) == 2, said
    assert sorted(said)[0] == "dslite: a client asked for a WebSocket, which this server does not have\n"
    assert sorted(said)[1] == "dslite: a client sent something that is not HTTP/1.1\n"
