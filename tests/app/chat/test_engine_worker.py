"""The thread that owns the model: what it keeps on disk and when, and what it reports."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.fake_engine import FakeBackend, FakeLoader

from dslite.app.chat import engine_worker as engine
from dslite.app.chat.engine_worker import EngineWorker, GenerationJob
from dslite.app.terminal.progress_text import reading_text
from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.engine.engine import Engine
from dslite.runtime.errors import CheckpointError
from dslite.runtime.events import Done, Prefilling
from dslite.runtime.text.message import Message

PATIENCE_S = 30.0


class PersistentBackend(FakeBackend):
    """Notes which caches it was asked to restore and to save."""

    def __init__(self) -> None:
        super().__init__("yes")
        self.calls: queue.Queue[tuple[str, str]] = queue.Queue()

    def restore_cache(self, key: str, messages: Sequence[Any], *, continue_final_message: bool = False) -> None:
        self.calls.put(("restore", key))

    def save_cache(self, key: str) -> None:
        self.calls.put(("save", key))


@pytest.fixture
def backend() -> PersistentBackend:
    return PersistentBackend()


@pytest.fixture
def worker(backend: PersistentBackend) -> Iterator[EngineWorker]:
    started = EngineWorker(FakeLoader(backend), save_cache_after_s=0.01)
    started.start()
    started.load(parse_model("demo"))
    yield started
    started.close()


def job(identity: str | None) -> GenerationJob:
    return GenerationJob((), conversation=1, conversation_id=identity)


def until(worker: EngineWorker, kind: type) -> Any:
    """The first event of a kind."""
    while True:
        for event in worker.drain(PATIENCE_S):
            if isinstance(event, kind):
                return event


def test_a_saved_conversation_is_restored_before_and_saved_once_when_no_question_comes(
    worker: EngineWorker, backend: PersistentBackend
) -> None:
    worker.generate(job("talk"))
    assert backend.calls.get(timeout=PATIENCE_S) == ("restore", "talk")
    assert backend.calls.get(timeout=PATIENCE_S) == ("save", "talk")
    assert backend.calls.empty()  # one state is saved once


def test_closing_saves_what_was_not_saved_yet(backend: PersistentBackend) -> None:
    worker = EngineWorker(FakeLoader(backend))
    worker.start()
    worker.load(parse_model("demo"))
    worker.generate(job(None))
    until(worker, engine.StatsUpdated)
    worker.conversation_saved(1, "talk")  # a new conversation has its id once it is saved
    worker.close()
    assert backend.calls.get(timeout=PATIENCE_S) == ("save", "talk")


def test_a_conversation_that_is_not_saved_leaves_nothing(worker: EngineWorker, backend: PersistentBackend) -> None:
    worker.generate(job(None))
    worker.close()
    assert backend.calls.empty()


def test_another_conversation_saves_the_cache_of_the_one_before(backend: PersistentBackend) -> None:
    worker = EngineWorker(FakeLoader(backend))
    worker.start()
    worker.load(parse_model("demo"))
    worker.generate(job("talk"))
    worker.reset_stats()
    worker.generate(GenerationJob((), conversation=2))
    until(worker, engine.GenerationEvent)
    assert backend.calls.get(timeout=PATIENCE_S) == ("restore", "talk")
    assert backend.calls.get(timeout=PATIENCE_S) == ("save", "talk")
    worker.close()


@pytest.mark.parametrize("event", [*engine.WorkerEvent.__args__, engine.ConversationSaved, engine.ResetStats])
def test_what_crosses_the_threads_is_immutable(event: type) -> None:
    made = object.__new__(event)
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(event)[0].name if fields(event) else "any", None)


def test_a_job_holds_no_function_and_no_part_of_the_message_tree() -> None:
    made = GenerationJob((), {})
    with pytest.raises(FrozenInstanceError):
        made.messages = ()  # type: ignore[misc]
    for field in fields(made):
        value = getattr(made, field.name)
        assert isinstance(value, tuple | dict | int | str | bool | threading.Event | None), field.name


def test_a_model_that_is_not_found_leaves_the_loaded_one(backend: PersistentBackend) -> None:
    fault = CheckpointError("there is no folder demi", "did you mean demo?")
    worker = EngineWorker(FakeLoader(backend, error=lambda ref: fault if ref.name == "demi" else None))
    worker.start()
    worker.load(parse_model("demo"))
    until(worker, engine.ModelReady)
    worker.load(parse_model("demi"))
    event = until(worker, engine.ModelUnavailable)
    assert event.error is fault
    assert event.kept
    assert worker.loaded is not None
    worker.generate(job(None))
    until(worker, engine.GenerationEvent)
    worker.close()


@pytest.mark.parametrize("place", ["load", "reply"])
def test_an_unexpected_error_is_reported_and_its_traceback_is_in_the_log(home: Path, place: str) -> None:
    class Broken(FakeBackend):
        def reply(self, *_: Any, **more: Any) -> Any:
            raise ZeroDivisionError("the reply broke")

    class BrokenLoader(FakeLoader):
        def load(self, *args: Any) -> Any:
            if place == "load":
                raise ZeroDivisionError("the load broke")
            return super().load(*args)

    worker = EngineWorker(BrokenLoader(Broken()))
    worker.start()
    worker.load(parse_model("demo"))
    worker.generate(job(None))
    event = until(worker, engine.ModelUnavailable if place == "load" else engine.GenerationFailed)
    worker.close()
    assert f"unexpected ZeroDivisionError: the {place} broke" in event.error.message
    log = (home / "data" / "dslite.log").read_text()
    assert "Traceback" in log
    assert f"the {place} broke" in log


class LayerClock:
    """`time` for the engine: every layer that runs takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class TimedLayer:
    """A layer of a network that moves the clock."""

    def __init__(self, layer: Any, clock: LayerClock) -> None:
        self._layer, self._clock = layer, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._clock.now += 1.0
        return self._layer(*args, **options)


def test_a_long_prefill_reports_progress_between_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = LayerClock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    plain = load_engine(write_checkpoint(tmp_path / "model", tiny_config()))
    layers: Any = [TimedLayer(layer, clock) for layer in plain.model.layers]
    model = replace(plain.model, network=replace(plain.model.network, layers=layers))
    backend: Any = LocalChatBackend(Engine(model, plain.tokenizer, context=plain.context, eos_token_ids=[]), "tiny")
    messages = (Message("user", "a long question " * 5),)
    total = len(backend.prompt_ids(messages))
    worker = EngineWorker(FakeLoader(backend))
    worker.start()
    worker.load(parse_model("demo"))
    worker.generate(GenerationJob(messages, {"max_tokens": 1, "temperature": 0.0}))
    progress: list[Prefilling] = []
    ended = False
    while not ended:
        for event in worker.drain(PATIENCE_S):
            assert not isinstance(event, engine.GenerationFailed), event
            if isinstance(event, engine.GenerationEvent):
                ended |= isinstance(event.event, Done)
                progress += [event.event] if isinstance(event.event, Prefilling) else []
    worker.close()
    assert [event.done for event in progress[:-1]] == [
        total * layer / len(layers) for layer in range(1, len(layers) + 1)
    ]
    assert progress[-1].done == total
    assert reading_text(progress[0]).startswith(f"reading {total / len(layers):,.0f} of {total} · ")
