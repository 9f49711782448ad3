"""Who may use the server, under which path and with which method; a refusal says what to do."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server.auth import parse_host, parse_origin
from dslite.runtime.engine.engine import Engine
from dslite.runtime.errors import UsageError

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("access"), tiny_config()), context=200)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


@pytest.fixture(scope="module")
def open_server(engine: Engine) -> Iterator[Server]:
    """Started with --allow-origin and --allow-host."""
    with serving_here(engine, hosts=["Box.example"], origins=[PAGE + "/", "https://app.example:443"]) as started:
        yield started


@pytest.fixture(scope="module")
def keyed_server(engine: Engine) -> Iterator[Server]:
    """Started with --api-key-env, --allow-origin and --allow-host."""
    with serving_here(engine, key="s3cret", hosts=["box.example"], origins=[PAGE]) as started:
        yield started


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/", "/v1//models", "//v1/models", "/v1///models//", "/v1/models/tiny/"]
)
def test_doubled_and_trailing_slashes_answer_as_the_plain_path(server: Server, path: str) -> None:
    status, answer, headers = server.request("GET", path)
    assert status == 200
    plain = "/v1/models/tiny" if "tiny" in path else "/v1/models"
    assert answer == server.request("GET", plain)[1]
    assert headers["Location"] is None


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions/", "/v1//chat/completions", "/v1/chat//completions", "//v1/chat/completions//"]
)
def test_posts_answer_under_any_slashes(server: Server, path: str) -> None:
    assert server.request("POST", path, CHAT)[0] == 200


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "/v1/chat/completions/", "/health//", "/nosuch/"])
def test_the_guard_is_first_under_any_slashes(server: Server, keyed_server: Server, path: str) -> None:
    """No redirect tells a foreign client anything, its own Host least of all."""
    status, answer, headers = server.request("GET", path, headers={"Host": "evil.example"})
    assert status == (200 if "health" in path else 403)
    assert headers["Location"] is None
    assert "evil.example" not in json.dumps(answer)
    assert keyed_server.request("GET", path)[0] == (200 if "health" in path else 401)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/responses/resp_1", "stores no responses"),
        ("/v1/responses/resp_1/cancel", "stores no responses"),
        ("/responses", "base URL that ends in /v1"),
        ("/v1/embeddings", "no embeddings"),
        ("/embeddings", "no embeddings"),
        ("/v1/messages", "/v1/chat/completions"),
        ("/api/chat", "ollama"),
        ("/api/tags", "ollama"),
        ("/chat/completions", "base URL that ends in /v1"),
        ("/v1/v1/chat/completions", "/v1 twice"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/v1/model", "did you mean /v1/models?"),
        ("/v1/images/generations", "writes text"),
        ("/", "/v1/chat/completions"),
        ("/nosuch", "/v1/chat/completions"),
    ],
)
def test_a_route_that_is_not_here_says_what_to_use(server: Server, path: str, words: str) -> None:
    for method, body in (("GET", None), ("POST", {})):
        status, answer, _ = server.request(method, path, body)
        assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
        assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "OPTIONS, POST"),
        ("DELETE", "/v1/completions", "OPTIONS, POST"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/models/tiny", "GET, HEAD, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_another_method_is_refused_with_those_that_go(server: Server, method: str, path: str, allowed: str) -> None:
    status, answer, headers = server.request(method, path)
    assert (status, headers["Allow"]) == (405, allowed)
    assert allowed in answer["error"]["message"]
    status, answer, headers = server.request("OPTIONS", path)
    assert (status, answer, headers["Allow"]) == (204, None, allowed)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/tiny"])
def test_head_has_the_headers_of_get_and_no_body(server: Server, path: str) -> None:
    _, _, of_get = server.request("GET", path)
    status, answer, of_head = server.request("HEAD", path)
    assert (status, answer) == (200, None)
    assert of_head["Content-Length"] == of_get["Content-Length"]


def preflight(server: Server, origin: str, **headers: str) -> tuple[int, Any, Any]:
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-stainless-os"}
    return server.request("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **wanted, **headers})


@pytest.mark.parametrize("origin", [PAGE, "https://app.example"])
def test_a_page_of_an_allowed_origin_may_ask_and_read(open_server: Server, origin: str) -> None:
    status, _, headers = preflight(open_server, origin)
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == origin
    assert headers["Access-Control-Allow-Headers"] == "content-type, x-stainless-os"
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert "Origin" in headers["Vary"]
    for body, expected in ((CHAT, 200), ({"nosuch": 1}, 400), ({**CHAT, "model": "other"}, 404)):
        status, _, headers = open_server.request("POST", "/v1/chat/completions", body, {"Origin": origin})
        assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (expected, origin, "Origin")


def test_a_stream_may_be_read_by_an_allowed_page(open_server: Server) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: {PAGE}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = open_server.raw(head.encode() + body).decode().lower()
    assert f"access-control-allow-origin: {PAGE}\r\n" in answer
    assert "vary: origin\r\n" in answer


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:3001", "https://localhost:3000", "http://evil.example", "null", "*", "", "http://localhost:3000.evil.example"],
)  # fmt: skip
def test_any_other_page_is_refused_with_the_flag_that_allows_it(open_server: Server, origin: str) -> None:
    for status, answer, headers in (
        preflight(open_server, origin),
        open_server.request("POST", "/v1/chat/completions", CHAT, {"Origin": origin}),
        open_server.request("GET", "/v1/models", headers={"Origin": origin}),
    ):
        assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")
        assert "--allow-origin URL" in answer["error"]["message"]
        assert headers["Access-Control-Allow-Origin"] is None
        assert headers["Vary"] == "Origin"


def test_pages_and_names_need_the_key_where_there_is_one(keyed_server: Server) -> None:
    key = {"Authorization": "Bearer s3cret"}
    assert preflight(keyed_server, PAGE)[0] == 204
    assert preflight(keyed_server, "http://evil.example")[0] == 403
    status, answer, headers = keyed_server.request("POST", "/v1/chat/completions", CHAT, {"Origin": PAGE})
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert headers["Access-Control-Allow-Origin"] == PAGE  # so that the page can read why
    assert keyed_server.request("POST", "/v1/chat/completions", CHAT, {"Host": "box.example"})[0] == 401
    for name in ("box.example", "other.example"):
        assert keyed_server.request("POST", "/v1/chat/completions", CHAT, {"Host": name, **key})[0] == 200
    status, _, _ = keyed_server.request("POST", "/v1/chat/completions", CHAT, {"Origin": "null", **key})
    assert status == 403


def test_a_foreign_name_is_refused_with_the_flag_that_allows_it(server: Server, open_server: Server) -> None:
    for method, path in (("GET", "/v1/models"), ("OPTIONS", "/v1/models"), ("GET", "/nosuch")):
        status, answer, _ = server.request(method, path, headers={"Host": "host.docker.internal:8000"})
        assert (status, answer["error"]["code"]) == (403, "host_not_allowed")
        assert "--allow-host NAME" in answer["error"]["message"]
    for name, expected in (("box.example:8000", 200), ("BOX.example", 200), ("xbox.example", 403), ("localhost", 200)):
        assert open_server.request("GET", "/v1/models", headers={"Host": name})[0] == expected


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://LOCALHOST:80/", "http://localhost"),
        ("https://app.example:443", "https://app.example"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_is_read_as_browsers_write_it(text: str, origin: str) -> None:
    assert parse_origin(text) == origin


@pytest.mark.parametrize(
    "text", ["*", "null", "", "localhost", "http://", "http://*.example", "http://a/b", "http://a?b", "http://a:port"]
)
def test_what_is_no_origin_cannot_be_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="--allow-origin"):
        parse_origin(text)


@pytest.mark.parametrize("text", ["*", "", "http://a", "a/b", "a b"])
def test_what_is_no_name_cannot_be_allowed(text: str) -> None:
    with pytest.raises(UsageError, match="--allow-host"):
        parse_host(text)
