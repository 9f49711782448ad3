"""[chat] auto_title: a title by the model after the first answer, which never stands in the user's way."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.chat import Chat, drive, open_chat
from support.fake_engine import FakeBackend

from dslite.app.chat.launch import ChatConfig
from dslite.app.sessions.store import SessionStore


def titling(title: str = "Whales and Mammals") -> Any:
    def answer(messages: Sequence[Any]) -> str:
        return title if "Write a title" in messages[-1].content else "an answer"

    return answer


def asked_for_titles(chat: Chat) -> int:
    return sum("Write a title" in messages[-1].content for messages in chat.backend.asked)


ON = ChatConfig(auto_title=True)


@pytest.mark.parametrize("text", ["Whales and Mammals", '"Whales and Mammals."\n', "Title: **Whales and Mammals**"])
@drive
async def test_the_first_answer_brings_a_title_that_is_saved(home: Path, text: str) -> None:
    async with open_chat(home, FakeBackend(titling(text)), config=ON) as chat:
        await chat.ask("what is a whale?")
        await chat.until(lambda: chat.controller.tree.title == "Whales and Mammals")
        assert chat.contents == ["what is a whale?", "an answer"]
        assert chat.backend.params[-1].temperature == 0
        await chat.ask("and a shark?")
        await chat.ask("and a cod?")
        assert asked_for_titles(chat) == 1
    with SessionStore.open(home / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        assert talk.title == "Whales and Mammals"


@pytest.mark.parametrize(
    ("wanted", "device", "asked"),
    [(None, "cpu", 0), (None, "cuda:0", 1), (None, "gpu.example", 0), (False, "cuda:0", 0), (True, "cpu", 1)],
)
@drive
async def test_without_a_setting_only_a_gpu_of_this_machine_is_asked(
    home: Path, wanted: bool | None, device: str, asked: int
) -> None:
    backend = FakeBackend(titling(), facts={"device": device})
    async with open_chat(home, backend, config=ChatConfig(auto_title=wanted)) as chat:
        await chat.ask("what is a whale?")
        await chat.until(lambda: not chat.controller.busy)
        assert asked_for_titles(chat) == asked


@drive
async def test_a_title_of_the_user_stays(home: Path) -> None:
    gate = threading.Semaphore(10)
    async with open_chat(home, FakeBackend(titling("one two three four five six"), gate=gate), config=ON) as chat:
        await chat.ask("what is a whale?")
        await chat.until(lambda: asked_for_titles(chat) == 1)
        await chat.say("/title Mine")
        for _ in range(50):
            gate.release()
        await chat.until(lambda: not chat.controller.busy)
        assert chat.controller.tree.title == "Mine"


@drive
async def test_the_next_message_does_not_wait_for_a_title(home: Path) -> None:
    gate = threading.Semaphore(4)  # enough for the answer, and for some of the title
    async with open_chat(home, FakeBackend(titling("one two three four five six"), gate=gate), config=ON) as chat:
        await chat.ask("what is a whale?")
        await chat.until(lambda: asked_for_titles(chat) == 1)
        await chat.say("and a shark?")
        await chat.until(lambda: len(chat.backend.asked) == 3)
        for _ in range(50):
            gate.release()
        await chat.until(lambda: chat.contents[-1] == "an answer" and len(chat.contents) == 4)
        assert chat.controller.tree.title == "what is a whale?"


@drive
async def test_a_title_that_fails_or_is_empty_changes_nothing(home: Path) -> None:
    def answer(messages: Sequence[Any]) -> str:
        if "Write a title" in messages[-1].content:
            raise RuntimeError("no")
        return "an answer"

    for backend in (FakeBackend(answer), FakeBackend(titling('""'))):
        async with open_chat(home, backend, config=ON) as chat:
            await chat.ask("what is a whale?")
            await chat.until(lambda chat=chat: not chat.controller.busy)
            assert chat.controller.tree.title == "what is a whale?"
            assert "no" not in chat.text.split()
