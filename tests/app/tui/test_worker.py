"""The thread that owns the model: what it keeps on disk, and when."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from support.fake_engine import FakeResponder

from dslite.app.chat.model_loading import LoadedModel
from dslite.app.chat.settings import ChatSettings
from dslite.app.tui.control import engine_worker as module
from dslite.app.tui.control.engine_worker import EngineWorker, GenerationJob
from dslite.runtime.downloads.hub import parse_model


class Rememberer(FakeResponder):
    """A responder that tells what it was asked to recall and to keep."""

    def __init__(self) -> None:
        super().__init__("yes")
        self.told: queue.Queue[tuple[str, str]] = queue.Queue()

    def restore_cache(self, key: str, messages: Sequence[Any], *, continue_final_message: bool = False) -> None:
        self.told.put(("recall", key))

    def save_cache(self, key: str) -> None:
        self.told.put(("keep", key))


@pytest.fixture
def rememberer() -> Rememberer:
    return Rememberer()


@pytest.fixture
def worker(rememberer: Rememberer) -> Iterator[EngineWorker]:
    started = EngineWorker(lambda ref, report: LoadedModel(rememberer))
    started.start()
    started.open(parse_model("demo"))
    yield started
    started.close()


def question(saved_as: Callable[[], str | None], settings: ChatSettings) -> GenerationJob:
    return GenerationJob(list, settings, saved_as)


@pytest.fixture
def settings() -> ChatSettings:
    return ChatSettings(model="demo")


def test_a_saved_conversation_is_recalled_before_and_kept_when_nobody_asks(
    worker: EngineWorker, rememberer: Rememberer, settings: ChatSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEEP_AFTER_S", 0.01)
    worker.answer(question(lambda: "talk", settings))
    assert rememberer.told.get(timeout=10) == ("recall", "talk")
    assert rememberer.told.get(timeout=10) == ("keep", "talk")
    assert rememberer.told.empty()  # one state is kept once


def test_closing_keeps_what_was_not_kept_yet(
    worker: EngineWorker, rememberer: Rememberer, settings: ChatSettings
) -> None:
    answered = threading.Event()

    def saved_as() -> str | None:
        return "talk" if answered.is_set() else None  # a new conversation has its id once it is saved

    worker.answer(question(saved_as, settings))
    while not any(isinstance(event, module.StatsUpdated) for event in worker.drain()):
        pass
    answered.set()
    worker.close()
    assert rememberer.told.get(timeout=10) == ("keep", "talk")


def test_a_conversation_that_is_not_saved_leaves_nothing(
    worker: EngineWorker, rememberer: Rememberer, settings: ChatSettings
) -> None:
    worker.answer(question(lambda: None, settings))
    worker.close()
    assert rememberer.told.empty()
