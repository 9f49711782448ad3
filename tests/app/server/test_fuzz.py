"""Request bodies of any kind get an answer or an error of the client's, at once, and nothing of the inside."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server.limits import Limits
from dslite.app.server.routes import described_routes
from dslite.runtime.engine.engine import Engine

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
BODIES = {route.path: route.body for route in described_routes(Limits()) if route.body is not None}
ROUTES = [*BODIES, "/v1/models", "/v1/models/tiny", "/health", "/openapi.json", "/v1//chat/completions/", "/"]
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be"},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "y"},
        ],
        "max_tokens": 2,
        "stop": ["a", "b"],
        "stream_options": {"include_usage": True},
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "null"}}}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logprobs": True,
        "top_logprobs": 2,
        "seed": 5,
    },
    TEXT: {"model": "tiny", "prompt": ["hi", "ho"], "max_tokens": 2, "n": 2, "temperature": 1, "echo": True},
    RESPONSES: {
        "model": "tiny",
        "instructions": "be",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
            {"type": "message", "role": "assistant", "content": "y", "status": "completed"},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "z"},
        ],
        "max_output_tokens": 2,
        "tools": [{"type": "function", "name": "f", "description": "x", "parameters": {"type": "object"}}],
        "tool_choice": "required",
        "include": ["message.output_text.logprobs"],
        "reasoning": {"effort": None},
        "text": {"format": {"type": "text"}},
    },
    "/tokenize": {"prompt": "hi", "parse_special": True, "return_token_strs": True},
    "/detokenize": {"model": "tiny", "tokens": [5, 98, 99, 255]},
}
NAMES = sorted({name for body in BODIES.values() for name in body.fields})
INSIDE = re.compile(r"Traceback|File \"|\.py\b|/work|/home|/root|0x[0-9a-f]{6}|dslite\.|Error\b")

texts = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\ud800", "\udfff\ud800", "\x00", "﻿", "<｜User｜>", "{}"]
)
numbers = (
    st.integers()
    | st.integers(-2, 3)
    | st.floats()
    | st.sampled_from([10**30, -(10**400), 2**63, 2**63 - 1, -(2**63), 1e308, 5e-324, -0.0])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all that is in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def with_change(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value in which another one stands at a path."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = with_change(copy[path[0]], path[1:], new)
    return copy


@st.composite
def mutated_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good body of a route with values changed, added and nested, written as JSON that may be torn."""
    path = draw(st.sampled_from(sorted(GOOD)))
    body: Any = GOOD[path]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(sorted(places(body), key=repr)) if body else st.just(()))
        body = with_change(body, place, draw(values))
    for name in draw(st.lists(st.sampled_from(NAMES) | texts, max_size=3)):
        body = {**body, name: draw(values)}
    raw = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        twice = json.dumps({draw(st.sampled_from(NAMES)): draw(values)}).encode()
        raw = raw[:-1] + b"," + twice[1:]  # a key may stand twice
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=6)) + raw[at + draw(st.integers(0, 9)) :]
    return path, raw


hostile = st.one_of(
    st.binary(max_size=60),
    st.integers(1, 20_000).map(lambda depth: b'{"prompt":' + b"[" * depth),
    st.integers(1, 5000).map(lambda depth: b'{"messages":' + b"[" * depth + b"]" * depth + b"}"),
    st.integers(1, 5000).map(lambda depth: b'{"stream_options":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"),
    st.integers(1, 9000).map(lambda digits: b'{"seed":' + b"9" * digits + b"}"),
    st.integers(1, 9000).map(lambda digits: b'{"temperature":1e' + b"9" * digits + b"}"),
    st.sampled_from(
        [b'{"seed":NaN}', b'{"n":-Infinity}', b"\xef\xbb\xbf{}", b"\xff\xfe{\x00}\x00", b'{"prompt":"\xff"}']
    ),
    values.map(lambda value: json.dumps(value).encode()),
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("fuzz"), tiny_config()), context=600)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine, Limits(choices=4)) as started:
        yield started


def check(server: Server, path: str, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    length = f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n".encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    answer = server.raw(head + length + raw).decode()  # to the end of the connection: an answer came
    status = int(answer.split(" ", 2)[1])
    assert status in (200, 400, 404, 405), answer
    content = answer.partition("\r\n\r\n")[2]
    if status != 200:
        error = json.loads(content)["error"]
        assert error["message"]
        assert len(error["message"]) < 1000
        assert not INSIDE.search(error["message"]), error
    elif "text/event-stream" in answer:
        assert re.search(r"data: \[DONE\]|event: response\.(completed|incomplete)\n", content)
        assert '"error":{' not in content
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def fuzz(server: Server, caplog: pytest.LogCaptureFixture, examples: int) -> None:
    @given(st.one_of(mutated_bodies(), st.tuples(st.sampled_from(ROUTES), hostile)))
    @settings(max_examples=examples)
    def run(request: tuple[str, bytes]) -> None:
        check(server, *request, caplog)

    run()
    assert server.request("POST", TEXT, GOOD[TEXT])[0] == 200


@pytest.mark.parametrize("path", GOOD)
def test_the_bodies_that_are_changed_are_answered_as_they_are(server: Server, path: str) -> None:
    status, answer, _ = server.request("POST", path, GOOD[path])
    assert status == 200, answer


def test_any_body_gets_an_answer_or_an_error_of_the_clients(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    fuzz(server, caplog, 200)


@pytest.mark.long
def test_thousands_of_bodies_get_an_answer_or_an_error_of_the_clients(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    fuzz(server, caplog, 5000)
