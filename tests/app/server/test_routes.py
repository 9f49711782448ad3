"""What holds of every route: described, guarded, numbered."""

import json
import logging
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server import api
from dslite.app.server.json_fields import Support
from dslite.app.server.limits import Limits
from dslite.app.server.routes import DescribedRoute, described_routes
from dslite.runtime.engine.engine import Engine

ROUTES = described_routes(Limits())
GUARDED = [route for route in ROUTES if route.path != "/health"]
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("routes"), tiny_config()), context=200)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


@pytest.fixture(scope="module")
def keyed_server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine, key="s3cret") as started:
        yield started


def send(server: Server, route: DescribedRoute, **headers: str) -> tuple[int, Any, Any]:
    path = route.path.replace("{model}", "tiny")
    return server.request(route.method, path, None if route.body is None else {"nosuch": 1}, headers)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_every_described_route_is_there(server: Server, route: DescribedRoute) -> None:
    status, answer, _ = send(server, route)
    assert status == (200 if route.body is None else 400), answer
    if route.body is not None:
        assert "unknown field" in answer["error"]["message"]


def test_every_route_that_is_there_is_described(server: Server) -> None:
    message = server.request("GET", "/nosuch")[1]["error"]["message"]
    assert set(message.partition("has ")[2].split(", ")) == {route.path for route in ROUTES} - {"/v1/models/{model}"}


@pytest.mark.parametrize("route", GUARDED, ids=lambda route: route.path)
def test_every_route_but_health_is_behind_the_key_the_host_and_the_origin(
    server: Server, keyed_server: Server, route: DescribedRoute
) -> None:
    assert send(keyed_server, route)[0] == 401
    assert send(keyed_server, route, Authorization="Bearer s3cret")[0] in (200, 400)
    assert send(server, route, Host="evil.example")[0] == 403
    assert send(server, route, Origin="http://evil.example")[0] == 403
    assert send(keyed_server, route, Authorization="Bearer s3cret", Origin="null")[0] == 403


def test_the_version_is_that_of_the_package(server: Server) -> None:
    assert server.request("GET", "/version")[1] == {"version": version("dslite")}


def test_openapi_has_every_route_with_its_honoured_fields_and_no_refused_one(server: Server) -> None:
    document = server.request("GET", "/openapi.json")[1]
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {route.path for route in ROUTES}
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert ("requestBody" in operation) == (route.body is not None)
        if route.body is None:
            continue
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        fields = {field.name for field in route.body.fields.values() if field.support is not Support.REFUSED}
        assert set(schema["properties"]) == fields


def test_openapi_tells_types_and_bounds(server: Server) -> None:
    paths = server.request("GET", "/openapi.json")[1]["paths"]
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    shown = {name: field["anyOf"][0] for name, field in body["properties"].items() if "anyOf" in field}
    assert shown["temperature"] == {"type": "number", "minimum": 0, "maximum": 2}
    assert shown["n"] == {"type": "integer", "minimum": 1, "maximum": 128}
    assert shown["seed"] == {"type": "integer", "maximum": 2**63 - 1}
    assert shown["stream"] == {"type": "boolean"}
    assert shown["stream_options"]["properties"]["include_usage"]["anyOf"] == [{"type": "boolean"}, {"type": "null"}]
    assert shown["messages"]["items"]["properties"].keys() >= {"role", "content"}
    assert shown["stop_token_ids"]["items"] == {"type": "integer", "minimum": 0}


@pytest.mark.parametrize("given", ["abc-123", "req_1.2:3", "A" * 128])
def test_an_answer_has_the_id_that_its_request_has(server: Server, given: str) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/chat/completions", {"nosuch": 1}), ("/nosuch", {})):
        _, _, headers = server.request("POST", path, body, {"X-Request-Id": given})
        assert headers.get_all("X-Request-Id") == [given]


@pytest.mark.parametrize("given", [None, "", "a b", "A" * 129, "ünicode", 'a"b', "<script>"])
def test_a_request_without_an_id_that_can_be_sent_back_gets_a_new_one(server: Server, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given.encode("utf-8").decode("latin-1")}
    ids = [server.request("GET", "/v1/models", headers=headers)[2]["X-Request-Id"] for _ in range(2)]
    assert len(set(ids)) == 2
    assert all(len(each) == 36 and each.startswith("req_") for each in ids)


def test_a_stream_has_an_id_too(server: Server) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-Id: mine\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    assert b"x-request-id: mine\r\n" in server.raw(head.encode() + body).lower()


def test_the_log_names_the_request_that_failed(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(api, "openapi_document", fail)
    with caplog.at_level(logging.ERROR, "dslite.server"):
        status, answer, headers = server.request("GET", "/openapi.json")
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert f"request {headers['X-Request-Id']} failed" in caplog.text
