"""What fails in the worker's thread reaches every request that waits; the next ones are answered, or fail at once."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.serving import Server, serving_here

from dslite.app.server import worker as worker_module
from dslite.app.server.errors import ApiError
from dslite.app.server.limits import Limits
from dslite.app.server.worker import Worker
from dslite.model.transformer import Transformer
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.events import Done

TEXT = {"prompt": "hi", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(write_checkpoint(tmp_path_factory.mktemp("worker"), tiny_config()), context=200)


@pytest.fixture
def server(engine: Engine) -> Iterator[Server]:
    with serving_here(engine) as started:
        yield started


FAILURES = [RuntimeError("broken"), MemoryError(), KeyError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize(
    "place", [(Transformer, "forward"), (Scheduler, "step"), (Scheduler, "add")], ids=lambda p: p[1]
)
def test_any_exception_ends_what_waits_and_the_next_request_is_answered(
    server: Server, monkeypatch: pytest.MonkeyPatch, failure: BaseException, place: tuple[type, str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    with monkeypatch.context() as broken:
        broken.setattr(*place, fail)
        status, answer, _ = server.request("POST", "/v1/completions", {**TEXT, "n": 3})
        assert (status, answer["error"]["code"]) == (500, "internal_error")
        streamed = stream(server, {**TEXT, "n": 3})
        assert json.loads(streamed[-1])["error"]["code"] == "internal_error"
    assert server.request("POST", "/v1/completions", TEXT)[0] == 200
    assert stream(server, TEXT)[-1] == "[DONE]"
    assert server.request("GET", "/health")[0] == 200


def stream(server: Server, body: dict[str, Any]) -> list[str]:
    """The events of a stream."""
    data = json.dumps({**body, "stream": True}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    )
    answer = server.raw(head + f"Content-Length: {len(data)}\r\n\r\n".encode() + data).decode()
    assert answer.endswith("0\r\n\r\n")  # ended, not cut
    return [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]


def test_a_worker_that_cannot_go_on_refuses_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Scheduler):
        """Fails in its first step, and cannot be made a second time."""

        made = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            Broken.made += 1
            if Broken.made > 1:
                raise OSError("the device is gone")
            super().__init__(*arguments, **options)

        def step(self) -> Any:
            raise RuntimeError("broken")

    monkeypatch.setattr(worker_module, "Scheduler", Broken)
    with serving_here(engine) as server:
        assert server.request("POST", "/v1/completions", TEXT)[0] == 500
        refused = server.request("POST", "/v1/completions", TEXT)
        while refused[1]["error"]["code"] == "internal_error":  # the thread has yet to end
            refused = server.request("POST", "/v1/completions", TEXT)
        assert (refused[0], refused[1]["error"]["code"]) == (500, "engine_dead")
        while server.request("GET", "/health")[0] != 503:
            pass
    assert "the device is gone" in caplog.text


def test_a_worker_outlives_its_event_loop(engine: Engine) -> None:
    """An answer that comes after the loop has ended is dropped."""
    worker = Worker(engine, Limits())

    async def begin() -> None:
        worker.start()
        worker.submit([Request([5, 6, 7], SamplingParams(max_tokens=100))])

    asyncio.run(begin())
    assert worker.stop(60)


def test_a_worker_in_a_long_step_is_not_waited_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    go, computing, forward = threading.Event(), threading.Event(), Transformer.forward

    def wait(*arguments: Any, **options: Any) -> Any:
        computing.set()
        go.wait()
        return forward(*arguments, **options)

    monkeypatch.setattr(Transformer, "forward", wait)
    worker = Worker(engine, Limits())

    async def begin() -> None:
        worker.start()
        worker.submit([Request([5, 6, 7], SamplingParams(max_tokens=1))])
        await asyncio.to_thread(computing.wait)
        assert not await asyncio.to_thread(worker.stop, 0.05)

    asyncio.run(begin())
    assert worker.alive
    go.set()
    assert worker.stop(60)


def test_a_stream_says_when_nothing_has_come_for_a_while(engine: Engine) -> None:
    async def listen() -> tuple[Any, Any]:
        worker = Worker(engine, Limits())
        stream = worker.submit([Request([5, 6, 7], SamplingParams(max_tokens=0))])  # not started: nothing comes
        silence = await stream.next(0.01)
        worker.start()
        events = [event async for _, event in stream.events()]
        await asyncio.to_thread(worker.stop)
        return silence, events[-1]

    silence, last = asyncio.run(listen())
    assert silence is None
    assert isinstance(last, Done)


def test_a_failed_stream_raises_the_error_of_its_cause(engine: Engine) -> None:
    async def listen() -> None:
        worker = Worker(engine, Limits())
        stream = worker.submit([Request([5, 6, 7], SamplingParams())])
        worker.end_all(ApiError(503, "over", code="shutting_down"))
        with pytest.raises(ApiError, match="over"):
            await stream.next()
        with pytest.raises(ApiError, match="over"):
            worker.submit([Request([5], SamplingParams())])

    asyncio.run(listen())
