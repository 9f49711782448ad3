"""An engine at its socket: who may use it, what ends it, and what it leaves."""

import json
import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.markov_model import write_markov_model
from support.warm import RunningEngine, needs_engines, prepare, warm_engine

from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import Done, Loading, LoadingEvent, Prefilling, Token
from dslite.runtime.system.local_socket import hold_lock
from dslite.runtime.warm import client as client_module
from dslite.runtime.warm import server as server_module
from dslite.runtime.warm.address import socket_file
from dslite.runtime.warm.client import (
    EngineLostError,
    EngineRefusedError,
    WarmClient,
    find_engine,
    open_channel,
    running_engines,
)
from dslite.runtime.warm.frames import Channel
from dslite.runtime.warm.key import EngineKey

pytestmark = needs_engines

NEVER = threading.Event()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Continues "x" with "yz" for ever."""
    return write_markov_model(tmp_path_factory.mktemp("markov"), {"x": "y", "y": "z", "z": "x"})


@pytest.fixture
def engine(model: Path, runtime_dir: Path) -> Iterator[RunningEngine]:
    with warm_engine(model) as running:
        yield running


def text_of(client: WarmClient, cancel: threading.Event = NEVER) -> str:
    *_, done = client.answer(cancel)
    assert isinstance(done, Done)
    return done.text


def test_an_answer_comes_over_the_socket(engine: RunningEngine) -> None:
    client = engine.begin("x", temperature=0.0, max_tokens=4, logprobs=None)
    events = list(client.answer(NEVER))
    assert [event.text for event in events if isinstance(event, Token)] == ["y", "z", "x", "y"]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.prompt_tokens) == ("length", 2)
    assert client.memory["kv_bytes"] == 5 * client.memory["kv_bytes_per_token"]


def test_the_progress_of_a_prompt_comes_before_its_answer(engine: RunningEngine) -> None:
    first, *_ = engine.begin("x" * 3000, temperature=0.0, max_tokens=1).answer(NEVER)
    assert isinstance(first, Prefilling)
    assert first.total == 3001


def test_only_this_user_can_open_the_socket(engine: RunningEngine, runtime_dir: Path) -> None:
    status = socket_file(runtime_dir, engine.key.name).stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())


@pytest.mark.parametrize("side", [server_module, client_module])
def test_a_peer_of_another_user_is_refused(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch, side: ModuleType
) -> None:
    monkeypatch.setattr(side, "user_id", lambda: os.geteuid() + 1)
    assert find_engine(engine.key, lambda _: None) is None


def test_a_request_that_is_wrong_is_an_error_and_the_connection_goes_on(engine: RunningEngine) -> None:
    client = engine.connect()
    with pytest.raises(UsageError, match="temperature is 9"):
        prepare(client, "x", temperature=9)
    with pytest.raises(ContextFullError):
        prepare(client, "x" * 40_000)
    prepare(client, "x", temperature=0.0, max_tokens=2)
    assert text_of(client) == "yz"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\2[]",
        b"\0\0\0\2{}",
        b'\0\0\0\x0f{"op": "answer"}',
        b'\0\0\0\x0d{"op": "what"}',
        b'\0\0\0\x0e{"op": "hello"}',
    ],
)
def test_garbage_ends_its_connection_and_no_other(engine: RunningEngine, runtime_dir: Path, data: bytes) -> None:
    client = engine.begin("x", temperature=0.0, max_tokens=3)
    with socket.socket(socket.AF_UNIX) as bare:
        bare.connect(str(socket_file(runtime_dir, engine.key.name)))
        bare.sendall(data)
        bare.shutdown(socket.SHUT_WR)
        assert bare.recv(100) == b""
    assert text_of(client) == "yzx"


def test_garbage_behind_a_greeting_ends_the_connection(engine: RunningEngine) -> None:
    for message in ({"op": "answer"}, {"op": "prepare"}, {"op": "call", "name": "x"}, {"op": "resume"}, {"op": 3}):
        client = engine.connect()
        with pytest.raises(EngineLostError):
            client.call(**message)  # type: ignore[arg-type]
    assert text_of(engine.begin("x", temperature=0.0, max_tokens=1)) == "y"


def test_fifty_clients_at_once_get_their_own_answers(engine: RunningEngine) -> None:
    texts: dict[int, str] = {}

    def ask(number: int) -> None:
        texts[number] = text_of(engine.begin("x", temperature=0.0, max_tokens=number))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 51)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: ("yzx" * 17)[:number] for number in range(1, 51)}


def test_a_cancel_ends_the_answer_in_the_engine(engine: RunningEngine) -> None:
    client, cancel = engine.begin("x", temperature=0.0, max_tokens=30_000), threading.Event()
    events = client.answer(cancel)
    assert isinstance(next(event for event in events if isinstance(event, Token)), Token)
    cancel.set()
    *_, done = events
    assert isinstance(done, Done)
    assert done.finish_reason == "interrupted"
    assert 0 < len(done.token_ids) < 30_000
    assert engine.server.idle.idle_s == 0.0
    engine.clock.now = 1.0
    assert engine.server.idle.idle_s == 1.0  # it has no work any more


def test_a_client_that_is_gone_stops_its_answer(engine: RunningEngine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dslite"):
        for number in range(16):  # as many as run together
            client = engine.begin("x" * number, temperature=0.0, max_tokens=30_000)
            next(client.answer(NEVER))
            client.close()
            engine.wait_until_left(0)
        assert text_of(engine.begin("x", temperature=0.0, max_tokens=2)) == "yz"
    ends = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert ends == ["interrupted"] * 16 + ["length"]


def test_a_private_request_leaves_nothing_in_memory(engine: RunningEngine) -> None:
    cache = engine.engine.prefix_cache
    for tokens in (1, 20, 30_000):  # answered, and left in the middle
        client = engine.begin("secret x", private=True, temperature=0.0, max_tokens=tokens, regex="[a-z]*")
        events = client.answer(NEVER)
        next(events) if tokens > 20 else list(events)
        assert engine.engine._constraints is not None
        client.close()
        engine.wait_until_left(0)
        assert (cache.tokens, cache.newest, cache._host.nbytes, engine.engine._constraints) == (0, None, 0, None)
    after = engine.begin("secret x", temperature=0.0, max_tokens=1)
    *_, done = after.answer(NEVER)
    assert isinstance(done, Done)
    assert done.cached_tokens == 0


def test_what_was_computed_is_found_by_the_next_client(engine: RunningEngine) -> None:
    text_of(engine.begin("xyzxyz", temperature=0.0, max_tokens=3))
    *_, done = engine.begin("xyzxyzyzx", temperature=0.0, max_tokens=3).answer(NEVER)
    assert isinstance(done, Done)
    assert done.cached_tokens > 5


def test_the_engine_ends_after_idle_time_of_an_injected_clock(engine: RunningEngine, runtime_dir: Path) -> None:
    engine.clock.now = 599.0
    engine.server.nudge()
    assert text_of(engine.begin("x", temperature=0.0, max_tokens=1)) == "y"  # which counts as work
    engine.clock.now = 1198.0
    engine.server.nudge()
    assert next(running_engines())[1]["idle_s"] == 599.0  # to look is no work
    engine.clock.now = 1199.0
    engine.server.nudge()
    engine.thread.join()


def test_an_engine_that_cannot_accept_any_more_ends(engine: RunningEngine) -> None:
    engine.server._listener.shutdown(socket.SHUT_RDWR)
    engine.thread.join()


def test_stop_ends_the_engine(engine: RunningEngine) -> None:
    stopping = running_engines()
    channel, description = next(stopping)
    assert description["model"] == engine.ref.key
    channel.send({"op": "stop"})
    assert channel.receive() is not None
    engine.thread.join()
    stopping.close()  # type: ignore[attr-defined]


def test_changed_weights_are_not_used(model: Path, runtime_dir: Path, tmp_path: Path) -> None:
    folder = write_markov_model(tmp_path / "model", {"x": "y"})
    with warm_engine(folder) as engine:
        file = next(folder.glob("*.safetensors"))
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        key = EngineKey.of(engine.ref, engine.options)
        with pytest.raises(EngineRefusedError, match="changed"):
            find_engine(key, lambda _: None)


def test_a_stale_socket_is_no_engine_and_its_place_is_taken(model: Path, runtime_dir: Path) -> None:
    with warm_engine(model) as engine:
        file = socket_file(runtime_dir, engine.key.name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(file))  # and ends without removing it
    assert file.exists()
    assert open_channel(file) is None
    assert find_engine(engine.key, lambda _: None) is None
    with warm_engine(model) as again:
        assert text_of(again.begin("x", temperature=0.0, max_tokens=1)) == "y"
    assert not file.exists()


def test_only_one_engine_has_a_place(engine: RunningEngine, runtime_dir: Path) -> None:
    with server_module.EngineSocket(engine.key.name) as second:
        assert second.listener is None
    assert hold_lock(runtime_dir / f"{engine.key.name}.lock") is None
    assert text_of(engine.begin("x", temperature=0.0, max_tokens=1)) == "y"  # the second took nothing away


def test_a_client_sees_the_progress_of_the_load(model: Path, runtime_dir: Path) -> None:
    seen: list[LoadingEvent] = []
    hold = threading.Event()
    with warm_engine(model, loading=[Loading(1, 2)], hold=hold) as engine:

        def note(event: LoadingEvent) -> None:
            seen.append(event)
            if event == Loading(1, 2):
                hold.set()

        client = find_engine(engine.key, note)
        assert client is not None
        client.close()
    assert seen[-1] == Loading(1, 2)


def test_an_engine_that_hangs_is_waited_for_no_longer_than_said(runtime_dir: Path) -> None:
    key, greeted = EngineKey({"protocol": 1}, ""), Channel(socket.socket())

    def greet(listener: socket.socket) -> None:
        """And say nothing more."""
        greeted.connection = listener.accept()[0]
        greeted.send({"ok": {}})

    with server_module.EngineSocket(key.name) as place:
        assert place.listener is not None
        assert find_engine(key, lambda _: None, greeting_s=0.01) is None  # nothing accepts
        place.listener.accept()[0].close()
        greeted.connection.close()
        thread = threading.Thread(target=greet, args=(place.listener,))
        thread.start()
        client = find_engine(key, lambda _: None, silence_s=0.01)
        thread.join()
        assert client is not None
        with pytest.raises(EngineLostError, match="silent"):
            client.call("keep", conversation="x")
        with pytest.raises(EngineLostError, match="silent"):
            list(client.answer(NEVER))
        client.close()
        greeted.close()


@pytest.mark.parametrize("last", [b"", b"\0\0\0\x20{", b"\0\0\0\2[]", b'\0\0\0\x0e{"event": "x"}'])
def test_an_engine_that_ends_or_lies_in_the_middle_of_an_answer_is_lost(runtime_dir: Path, last: bytes) -> None:
    key = EngineKey({"protocol": 1}, "")

    def answer(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            for message in ({"ok": {}}, {"event": "Prefilling", "done": 1, "total": 1, "cached": 0, "elapsed_s": 0}):
                data = json.dumps(message).encode()
                connection.sendall(len(data).to_bytes(4, "big") + data)
            connection.recv(1000)
            connection.sendall(last)

    with server_module.EngineSocket(key.name) as place:
        assert place.listener is not None
        thread = threading.Thread(target=answer, args=(place.listener,))
        thread.start()
        client = find_engine(key, lambda _: None)
        assert client is not None
        events = client.answer(NEVER)
        next(events)
        with pytest.raises(EngineLostError):
            next(events)
        client.close()
        thread.join()
    assert find_engine(key, lambda _: None) is None
