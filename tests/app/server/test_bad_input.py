"""What clients should not send, and what they get for it: an error in OpenAI's shape, and nothing of the inside."""

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server.limits import Limits
from dslite.model.transformer import Transformer
from dslite.runtime.engine.engine import Engine

LIMITS = Limits(
    parallel=2, queue=6, seconds=20, body_bytes=200_000, body_seconds=0.3, head_seconds=0.3, choices=4, stops=4
)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "tiny", "prompt": "hi", "max_tokens": 2}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("bad"), tiny_config()), context=200)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine, LIMITS) as started:
        yield started


def post(
    server: Server, path: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    try:
        connection.request("POST", "/v1" + path, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers
    finally:
        connection.close()


def refused(server: Server, change: dict[str, Any], *, path: str = "/chat/completions") -> dict[str, Any]:
    """The error object for a good request with some fields changed."""
    base = CHAT if "chat" in path else TEXT
    status, answer, _ = post(server, path, json.dumps({**base, **change}).encode())
    assert status == 400, answer
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


def assert_still_answers(server: Server) -> None:
    status, answer, _ = post(server, "/chat/completions", json.dumps(CHAT).encode())
    assert (status, len(answer["choices"])) == (200, 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 3),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", -1),
        ("top_p", 1e999),
        ("max_tokens", 1.5),
        ("max_tokens", 10**400),
        ("max_tokens", -2),
        ("max_completion_tokens", -2),
        ("n", 0),
        ("n", 5),
        ("n", -(2**70)),
        ("stream", "yes"),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop", ["x" * 2000]),
        ("logprobs", 3),
        ("top_logprobs", 3),
        ("messages", "hi"),
        ("messages", []),
        ("messages", [1]),
        ("messages", [{"role": "tool", "content": "x"}]),
        ("messages", [{"role": ["user"], "content": "x"}]),
        ("messages", [{"role": "user"}]),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        ),
        ("messages", [{"role": "user", "content": "\ud800"}]),
        ("continue_final_message", True),
        ("stream_options", []),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "xml"}),
        ("guided_regex", "a(?=b)"),
        ("guided_json", {"type": "array", "uniqueItems": True}),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"1": 100}),
        ("model", 7),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(server: Server, field: str, value: Any) -> None:
    body = json.dumps({**CHAT, field: value}).replace("Infinity", "1e999").encode()
    status, answer, _ = post(server, "/chat/completions", body)
    assert status == 400
    assert field in answer["error"]["message"] or "surrogate" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [10**9]),
        ("prompt", [-1]),
        ("prompt", [True]),
        ("prompt", [1.0]),
        ("prompt", {"a": 1}),
        ("prompt", ["a"] * 5),
        ("logprobs", 21),
        ("logprobs", True),
        ("best_of", 3),
        ("suffix", "x"),
        ("echo", 1),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(server: Server, field: str, value: Any) -> None:
    assert field in refused(server, {field: value}, path="/completions")["message"]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_number_is_refused(server: Server, literal: str) -> None:
    body = json.dumps({**CHAT, "temperature": 0.5}).replace("0.5", literal).encode()
    status, answer, _ = post(server, "/chat/completions", body)
    assert (status, literal in answer["error"]["message"]) == (400, True)


def test_ten_thousand_stop_texts_are_refused(server: Server) -> None:
    error = refused(server, {"stop": [str(number) for number in range(10_000)]})
    assert "at most 4 texts" in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": 1' + b"0" * 9999])
def test_what_is_no_json_object_is_refused(server: Server, body: bytes) -> None:
    status, answer, _ = post(server, "/completions", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"prompt":"hi","seed":' + b"9" * 5000 + b"}", "a number of more than 4,300 digits"),
        (b'{"prompt":"hi","max_tokens":-' + b"1" * 4301 + b"}", "a number of more than 4,300 digits"),
        (b'{"prompt":"hi","metadata":' + b'{"a":' * 9000 + b"1" + b"}" * 9001, "nested too deeply"),
        (b'{"prompt":' + b"[" * 9000 + b"]" * 9000 + b"}", "nested too deeply"),
        ('{"prompt":"h\xe9"}'.encode("latin-1"), "not UTF-8"),
        ('{"prompt":"hi"}'.encode("utf-16"), "not UTF-8"),
        (b'{"prompt":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"prompt":"hi",}', "at character 15"),
        (b'{"prompt":"hi"}{}', "at character 15"),
    ],
)
def test_what_is_wrong_with_a_body_is_said(server: Server, body: bytes, reason: str) -> None:
    status, answer, _ = post(server, "/completions", body)
    assert (status, reason in answer["error"]["message"]) == (400, True), answer


def test_a_byte_order_mark_is_no_part_of_a_body(server: Server) -> None:
    assert post(server, "/completions", b"\xef\xbb\xbf" + json.dumps(TEXT).encode())[0] == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip"])
def test_a_compressed_body_is_refused_with_the_reason(server: Server, encoding: str) -> None:
    status, answer, _ = post(server, "/completions", b"\x1f\x8b", {"Content-Encoding": encoding})
    assert (status, "Content-Encoding" in answer["error"]["message"]) == (415, True)
    assert post(server, "/completions", json.dumps(TEXT).encode(), {"Content-Encoding": "Identity"})[0] == 200


@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "top_k", "min_tokens"])
@pytest.mark.parametrize("value", [2**31, 2**63 - 1])
def test_a_count_that_the_table_takes_is_taken(server: Server, name: str, value: int) -> None:
    body = {"prompt": "hi", "max_tokens": -1, "seed": 1, "temperature": 1}
    if name == "n_predict":
        del body["max_tokens"]
    status, answer, _ = post(server, "/completions", json.dumps({**body, name: value}).encode())
    assert status == 200, answer


def test_a_body_of_100_megabytes_is_refused_unread(server: Server) -> None:
    with server.connect() as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 100000000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    with server.connect() as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        for _ in range(8):
            connection.sendall(piece)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert_still_answers(server)


def test_a_body_that_does_not_come_is_waited_for_only_so_long(server: Server) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = server.raw(head + b'Content-Length: 9\r\n\r\n{"mod')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("begun", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: local"])
def test_a_connection_that_asks_nothing_is_closed(server: Server, begun: bytes) -> None:
    assert server.raw(begun) == b""


def test_a_second_request_that_never_ends_is_closed_too(server: Server) -> None:
    answer = server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
    assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_page_in_a_browser_may_send_unasked_is_refused(server: Server, kind: str) -> None:
    status, answer, _ = post(server, "/chat/completions", json.dumps(CHAT).encode(), {"Content-Type": kind})
    assert (status, "application/json" in answer["error"]["message"]) == (415, True)


def test_a_foreign_name_that_leads_here_is_refused(server: Server) -> None:
    for host in ("evil.example", "evil.example:80", "localhost.evil.example"):
        status, _, headers = post(server, "/chat/completions", json.dumps(CHAT).encode(), {"Host": host})
        assert status == 403
        assert "access-control-allow-origin" not in headers
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert post(server, "/chat/completions", json.dumps(CHAT).encode(), {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/etc/passwd", "/v1/../../etc/passwd", "/v1/models/../../x", "/docs", "/v1/files", "/%00"]
)
def test_there_is_nothing_but_the_api(server: Server, path: str) -> None:
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_another_method_is_refused(server: Server) -> None:
    answer = server.raw(b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_wrong_key_is_refused_and_health_needs_none(engine: Engine) -> None:
    with serving_here(engine, key="schlüssel") as server:
        body = json.dumps(CHAT).encode()
        for given in (None, "", "Bearer", "Bearer ", "Bearer wrong", "schlüssel", "Basic schlüssel", "Bearer \xff\x80"):
            headers = {} if given is None else {"Authorization": given}
            status, answer, _ = post(server, "/chat/completions", body, headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        right = {"Authorization": "Bearer " + "schlüssel".encode().decode("latin-1")}
        assert post(server, "/chat/completions", body, right)[0] == 200
        assert post(server, "/chat/completions", body, {**right, "Host": "box.example"})[0] == 200
        assert server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The network computes nothing until the end of the test."""
    go, forward = threading.Event(), Transformer.forward

    def wait(*arguments: Any, **options: Any) -> Any:
        go.wait()
        return forward(*arguments, **options)

    monkeypatch.setattr(Transformer, "forward", wait)
    yield
    go.set()


def test_what_is_over_the_queue_is_told_to_come_again(server: Server, standstill: None) -> None:
    with Holding(server, 4), Holding(server, 2):
        status, answer, headers = post(server, "/completions", json.dumps(TEXT).encode())
        assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "overloaded", "1")


def test_clients_that_leave_give_their_places_back(server: Server) -> None:
    with Holding(server, 4), Holding(server, 2):
        pass
    for _ in range(200):
        if post(server, "/chat/completions", json.dumps(CHAT).encode())[0] == 200:
            return
    raise AssertionError("the answers of clients that left still hold the queue")


class Holding:
    """A stream that is asked for and not read."""

    def __init__(self, server: Server, n: int) -> None:
        body = json.dumps({**TEXT, "n": n, "max_tokens": 190, "stream": True, "temperature": 2}).encode()
        self._connection = server.connect()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self._connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._connection.recv(100)  # it has begun

    def __enter__(self) -> "Holding":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(
    "model messages prompt max_tokens temperature top_p n stream stop seed logprobs top_logprobs echo "
    "stream_options tools user top_k min_p repetition_penalty".split()
)
INSIDE = re.compile(r"Traceback|File \"|\.py\b|/work|/home|/root|0x[0-9a-f]{6}")


@given(
    path=st.sampled_from(["/chat/completions", "/completions"]), change=st.dictionaries(names, json_values, max_size=3)
)
@example(path="/completions", change={"prompt": {"a": []}, "n": True})
@settings(max_examples=150)
def test_any_json_gets_an_answer_or_an_error_without_the_inside(
    server: Server, path: str, change: dict[str, Any]
) -> None:
    base = CHAT if "chat" in path else TEXT
    body = json.dumps({**base, **change, "stream": False}).encode()
    status, answer, _ = post(server, path, body)
    assert status in (200, 400, 404), answer
    assert not INSIDE.search(json.dumps(answer)), answer


@given(raw=st.binary(max_size=200))
@settings(max_examples=60)
def test_any_bytes_leave_the_server_answering(server: Server, raw: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(raw + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert not INSIDE.search(answer.decode("latin-1"))
    assert server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


@given(
    name=st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True),
    value=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=60),
)
@settings(max_examples=60)
def test_any_header_leaves_the_server_answering(server: Server, name: str, value: str) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\n{name}: {value}\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer
    assert not INSIDE.search(answer.decode("latin-1"))


def test_an_error_inside_tells_the_client_nothing_and_the_log_all(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_down(*_: object, **options: object) -> None:
        raise RuntimeError("secret of " + str(Path.home()))

    with serving_here(engine) as server:
        with monkeypatch.context() as broken:
            broken.setattr(Transformer, "forward", break_down)
            status, answer, _ = post(server, "/chat/completions", json.dumps(CHAT).encode())
            streamed = server.openai().chat.completions.with_raw_response.create(**CHAT, stream=True)  # type: ignore[call-overload]
            events = streamed.http_response.read().decode()
        assert (status, answer["error"]["code"]) == (500, "internal_error")
        assert "secret" not in json.dumps(answer) + events
        assert '"code":"internal_error"' in events
        assert "[DONE]" not in events
        assert "secret of" in caplog.text
        assert_still_answers(server)


def test_a_request_that_takes_too_long_is_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    late, forward = threading.Event(), Transformer.forward

    def wait(*arguments: Any, **options: Any) -> Any:
        late.wait()
        return forward(*arguments, **options)

    monkeypatch.setattr(Transformer, "forward", wait)
    with serving_here(engine, Limits(seconds=0.05)) as server:
        status, answer, _ = post(server, "/completions", json.dumps(TEXT).encode())
        assert (status, answer["error"]["code"]) == (504, "timeout")
        streamed = server.openai().completions.create(**TEXT, stream=True)
        with pytest.raises(openai.APIError, match="not ready within"):
            list(streamed)
        late.set()
