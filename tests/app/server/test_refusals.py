"""What a refused request costs: no prompt is encoded that cannot fit, and small requests do not wait for large ones."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import Request
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server import json_fields
from dslite.app.server.bodies import BodyReader
from dslite.app.server.errors import ApiError
from dslite.app.server.limits import Limits
from dslite.runtime.engine.engine import Engine

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("refusals"), tiny_config()), context=200)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (TEXT, {"prompt": ["word " * 100_000] * 31}),
        (TEXT, {"prompt": ["x" * 500_000] * 31}),
        (TEXT, {"prompt": ["short"] * 30 + ["7" * 500_000]}),
        (TEXT, {"prompt": [[5] * 201, "short"]}),
        (CHAT, {"messages": [{"role": "user", "content": "中文字" * 100_000}]}),
        (CHAT, {"messages": [{"role": "user", "content": "a word " * 100}] * 90}),
        (CHAT, {"messages": [{"role": "user", "content": ""}] * 100_000}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "many words " * 20}] * 400}]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_encoded_of_what_cannot_fit(
    server: Server, engine: Engine, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("a prompt was encoded")

    monkeypatch.setattr(engine.tokenizer, "encode", encode)
    status, answer, _ = server.request("POST", path, body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded"), answer


@pytest.mark.parametrize(("path", "name"), [(TEXT, "prompt"), (CHAT, "messages")])
def test_the_error_of_the_context_has_the_words_that_clients_read(server: Server, path: str, name: str) -> None:
    """Clients search for "maximum context length is (\\d+)", and for OpenAI's code."""
    text = "ab" * 150  # within the bounds, and too long once it is encoded
    body = {"prompt": text} if name == "prompt" else {"messages": [{"role": "user", "content": text}]}
    for wanted in ({}, {"max_tokens": 1}, {"max_tokens": 10**6}):
        status, answer, _ = server.request("POST", path, {**body, **wanted})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        found = re.search(r"^This model's maximum context length is (\d+) tokens\.", answer["error"]["message"])
        assert found is not None
        assert found.group(1) == "200"


def test_one_prompt_that_does_not_fit_ends_the_encoding_of_the_others(
    server: Server, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], engine.tokenizer.encode

    def count(text: str, **options: Any) -> list[int]:
        encoded.append(text)
        return encode(text, **options)

    monkeypatch.setattr(engine.tokenizer, "encode", count)
    assert server.request("POST", TEXT, {"prompt": ["hi", "ab" * 150, "ho", "ab" * 150]})[0] == 400
    assert len(encoded) == 2


def body_of(size: int) -> Request:
    """A request with a JSON body of spaces."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b" " * size, "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def test_a_small_body_is_parsed_while_large_ones_are() -> None:
    async def go() -> list[str]:
        bodies, held, order = BodyReader(Limits()), threading.Event(), []

        def parse_large(_: bytes) -> None:
            held.wait()
            order.append("large")

        large = [asyncio.create_task(bodies.parse(body_of(2**20), parse_large)) for _ in range(6)]
        for _ in range(3):
            await bodies.parse(body_of(10), lambda _: order.append("small"))
        held.set()
        await asyncio.gather(*large)
        bodies.close()
        return order

    assert asyncio.run(go()) == ["small"] * 3 + ["large"] * 6


def test_half_a_million_brackets_are_not_parsed(server: Server) -> None:
    status, answer, _ = server.request("POST", TEXT, b'{"prompt":[' + b"{}," * 500_001 + b"1]}")
    assert status == 400
    assert "braces and brackets" in answer["error"]["message"]


MANY = {
    "token ids": b"1," * 600_000,
    "one list for each": b"[1]," * 300_000,
    "texts": b'"a",' * 600_000,
    "empty texts": b'"",' * 600_000,
    "texts of a quote": b'"\\"",' * 600_000,
    "texts of a backslash": b'"\\\\",' * 600_000,
    "objects in objects": b'{"a":{"b":1}},' * 200_000,
}


@pytest.mark.parametrize("values", MANY.values(), ids=MANY)
def test_half_a_million_values_are_not_parsed(monkeypatch: pytest.MonkeyPatch, values: bytes) -> None:
    monkeypatch.setattr(json_fields, "json", None)
    with pytest.raises(ApiError, match="more than 500,000 values"):
        json_fields.parse_object(b'{"prompt":[' + values + b"1]}")


@pytest.mark.parametrize(
    "text", ["," * 600_000, "{[" * 300_000, '\\",' * 500_000, "\\,\n" * 600_000, '",' * 200_000 + "," * 400_000]
)
def test_commas_and_braces_of_a_text_are_no_values(text: str) -> None:
    assert json_fields.parse_object(json.dumps({"user": text}).encode()) == {"user": text}
