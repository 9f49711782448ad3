"""Server-sent events as clients read them: headers, silence, and the same text for the same seed."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server.limits import Limits
from dslite.model.transformer import Transformer
from dslite.runtime.engine.engine import Engine

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi " * 20}], "max_tokens": 4, "stream": True},
    "/v1/completions": {"prompt": "hi " * 20, "max_tokens": 4, "stream": True},
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("streams"), tiny_config()), context=200)


def raw_stream(server: Server, path: str) -> tuple[str, str]:
    """Headers in lower case, and the events."""
    body = json.dumps(BODIES[path]).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    answer = server.raw(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body).decode()
    headers, _, events = answer.partition("\r\n\r\n")
    return headers.lower(), events


@pytest.mark.parametrize("path", BODIES)
def test_a_stream_passes_proxies_and_holds_data_alone(engine: Engine, path: str) -> None:
    with serving_here(engine) as server:
        headers, events = raw_stream(server, path)
    assert "content-type: text/event-stream; charset=utf-8" in headers
    assert "cache-control: no-cache" in headers
    assert "x-accel-buffering: no" in headers
    assert "content-length" not in headers
    lines = [line for line in events.splitlines() if line and not all(char in "0123456789abcdef" for char in line)]
    assert len(lines) > 2
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


@pytest.fixture
def standstill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The network computes nothing until the function is called."""
    go, forward = threading.Event(), Transformer.forward

    def wait(*arguments: Any, **options: Any) -> Any:
        go.wait()
        return forward(*arguments, **options)

    monkeypatch.setattr(Transformer, "forward", wait)
    yield go.set
    go.set()


@pytest.mark.parametrize("path", BODIES)
def test_a_silent_stream_shows_that_it_lives(engine: Engine, standstill: Callable[[], None], path: str) -> None:
    with serving_here(engine, Limits(silence_seconds=0.05)) as server, server.connect() as connection:
        body = json.dumps(BODIES[path]).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        came = b""
        while came.count(b": waiting\n\n") < 2:
            came += connection.recv(65536)
        assert b"data: [DONE]" not in came
        standstill()
        came += b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"data: [DONE]" in came
    assert came.endswith(b"0\r\n\r\n")


SETTINGS = [
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_p": 1, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.95},
    {"temperature": 2, "top_p": 1},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_body_gives_the_same_text_cached_and_beside_others(
    demo_server: Server, settings: dict[str, Any]
) -> None:
    """In float32 on the CPU: the first time, with its prompt in the cache, and in a batch with other requests."""
    asked = [{"role": "user", "content": "Tell me about profiles, please, and about sessions."}]
    settings = {"seed": 11, "extra_body": {"ignore_eos": True, **settings}}
    common = {"model": "demo", "messages": asked, "max_tokens": 60, **settings}

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=demo_server.url, api_key="none", max_retries=0) as client:

            async def text(**change: Any) -> str:
                answer = await client.chat.completions.create(**{**common, **change})
                return answer.choices[0].message.content or ""

            alone = [await text() for _ in range(2)]
            others = [{"seed": seed, "messages": [{"role": "user", "content": "x" * seed}]} for seed in range(1, 6)]
            together = await asyncio.gather(text(), *(text(**other) for other in others), text(), text(n=2))
            return [*alone, together[0], together[-2], together[-1]]

    texts = asyncio.run(ask())
    assert len(texts[0]) > 20
    assert texts == [texts[0]] * len(texts)
