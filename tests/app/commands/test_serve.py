"""`dslite serve` as a process: where it listens, how it ends, what it needs."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.serving import DSLITE, Server, serving

LONG = {"model": "deepseek-chat", "prompt": "x", "max_tokens": 30_000, "temperature": 2, "stream": True, "n": 4}
BODY = json.dumps(LONG).encode()
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    + f"Content-Length: {len(BODY)}\r\n\r\n".encode()
    + BODY
)


def dslite(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DSLITE, *words], capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    ended = dslite("serve", "-m", "demo", "--host", host, "--port", "0")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--api-key-env" in ended.stderr


def test_a_key_variable_that_is_empty_is_refused() -> None:
    ended = dslite("serve", "-m", "demo", "--api-key-env", "NO_KEY", env={"NO_KEY": " "})
    assert ended.returncode == 2
    assert "NO_KEY" in ended.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--allow-origin", "*"), ("--allow-origin", "null"), ("--allow-origin", "localhost"), ("--allow-host", "*")],
)
def test_pages_and_names_are_allowed_one_by_one(flag: str, value: str) -> None:
    ended = dslite("serve", "-m", "demo", flag, value)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{flag} '{value}'" in ended.stderr


def test_allowed_pages_and_names_are_answered() -> None:
    pages = ["--allow-origin", "http://localhost:3000", "--allow-origin", "http://localhost:5173/"]
    with serving("demo", *pages, "--allow-host", "host.docker.internal") as server:
        headers = {"Origin": "http://localhost:5173", "Host": "host.docker.internal:8000"}
        status, _, came = server.request("GET", "/v1/models", headers=headers)
        assert (status, came["Access-Control-Allow-Origin"]) == (200, "http://localhost:5173")
        assert server.request("GET", "/v1/models", headers={"Origin": "http://localhost:5174"})[0] == 403


def test_allow_host_does_not_stand_for_a_key() -> None:
    ended = dslite("serve", "-m", "demo", "--host", "0.0.0.0", "--allow-host", "box.example")
    assert ended.returncode == 2
    assert "--api-key-env" in ended.stderr


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = dslite("serve", "-m", "demo", "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == f"dslite: cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_serve_starts_without_importing_the_server_for_other_commands() -> None:
    code = "import sys, dslite.app.cli; print([m for m in ('uvicorn', 'starlette', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_it_listens_on_loopback_alone_and_says_where(demo_server: Server) -> None:
    server = demo_server
    assert server.process is not None
    assert server.said[0] == f"serving demo on {server.url}\n"
    assert server.address[0] == "127.0.0.1"
    listening = subprocess.run(["cat", f"/proc/{server.process.pid}/net/tcp"], capture_output=True, text=True)
    mine = [
        line.split()[1] for line in listening.stdout.splitlines() if f":{server.address[1]:04X} 00000000:0000" in line
    ]
    assert mine == [f"0100007F:{server.address[1]:04X}"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_running_answers_cleanly(number: int, code: int) -> None:
    with serving("demo", "--dtype", "float32") as server, server.connect() as connection:
        assert server.process is not None
        connection.sendall(REQUEST)
        came = connection.recv(1000)
        server.process.send_signal(number)
        came += b"".join(iter(lambda: connection.recv(65536), b""))
        assert came.endswith(b"0\r\n\r\n")  # the last chunk: the answer was ended, not cut
        text = came.decode()
        assert "data: [DONE]" in text or '"code":"shutting_down"' in text
        assert server.process.wait() == code
        assert "Traceback" not in "".join(server.said)


def test_a_second_signal_waits_no_longer_for_answers(babbler: Path) -> None:
    with serving(babbler, "--dtype", "float32") as server, server.connect() as connection:
        assert server.process is not None
        connection.sendall(REQUEST)
        came = connection.recv(1000)
        server.process.send_signal(signal.SIGTERM)
        while refuses_connections(server) is False:
            came += connection.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        came += b"".join(iter(lambda: connection.recv(65536), b""))
        assert came.count(b'"code":"shutting_down"') == 1
        assert b"[DONE]" not in came
        assert came.endswith(b"0\r\n\r\n")
        assert server.process.wait() == 143


def refuses_connections(server: Server) -> bool:
    """Whether the server has begun to end: it listens no longer."""
    try:
        server.connect().close()
    except ConnectionRefusedError:
        return True
    return False
