"""A conversation that fills the context: a fake model for what the screen does, the demo model for the rest."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.chat import Chat, drive, open_chat
from support.fake_engine import FakeBackend, pieces

from dslite.app.chat.launch import ChatConfig
from dslite.app.chat.model_loading import LocalModelLoader
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions.store import SessionStore
from dslite.app.settings.config_file import config_path, read_config
from dslite.runtime.engine_options import EngineOptions

CHOICES = ("forget", "summary", "edit", "stop")


def fake() -> FakeBackend:
    return FakeBackend("word " * 30, context=60)


async def choose(chat: Chat, choice: str) -> None:
    await chat.until("The context is full")
    await chat.press(*["down"] * CHOICES.index(choice), "enter")
    await chat.until(lambda: len(chat.app.screen_stack) == 1)


async def fill(chat: Chat) -> None:
    """A first turn, and a question for which no room is left."""
    await chat.ask("first " * 15)
    await chat.say("second " * 20)


@drive
async def test_the_limit_is_told_before_it_is_reached(home: Path) -> None:
    async with open_chat(home, FakeBackend("word " * 30, context=66)) as chat:
        await chat.ask("first " * 15)
        await chat.until(lambda: "the context is 9" in chat.text)
        await chat.until("forget the oldest turns, or go on in a new chat")


@drive
async def test_the_choice_to_forget_holds_for_the_conversation_and_is_told_each_time(home: Path) -> None:
    async with open_chat(home, fake()) as chat:
        await fill(chat)
        await choose(chat, "forget")
        await chat.until("no longer sees the first 2 messages")
        await chat.until(lambda: chat.controller.reply is None)
        assert [message.content[:6] for message in chat.backend.asked[-1]] == ["second"]
        await chat.say("third " * 15)
        await chat.until("no longer sees the first 4 messages")
        await chat.until(lambda: chat.controller.reply is None)
        assert [message.content[:5] for message in chat.backend.asked[-1]] == ["third"]
        assert len(chat.contents) == 6


@drive
async def test_what_was_forgotten_stays_forgotten_while_there_is_room(home: Path) -> None:
    async with open_chat(home, FakeBackend("word " * 3, context=60)) as chat:
        await chat.ask("first " * 20)
        await chat.say("second " * 20)
        await choose(chat, "forget")
        await chat.until(lambda: chat.controller.reply is None)
        await chat.ask("third")
        read = [message.content.split()[0] for message in chat.backend.asked[-1]]
        assert read == ["word", "second", "word", "third"] or read == ["second", "word", "third"]
        assert chat.text.count("no longer sees") == 1


@drive
async def test_a_summary_begins_a_new_chat_that_holds_it_and_answers_the_question(home: Path) -> None:
    def answer(messages: Sequence[Any]) -> str:
        return "the whales were blue" if "Summarise" in messages[-1].content else "word " * 30

    async with open_chat(home, FakeBackend(answer, context=120)) as chat:
        await chat.ask("first " * 40)
        old = chat.controller.tree
        await chat.say("second " * 20)
        await choose(chat, "summary")
        await chat.until("this chat goes on from a summary")
        await chat.until(lambda: chat.controller.reply is None and len(chat.contents) == 2)
        assert chat.contents[0].startswith("second")
        assert "the whales were blue" in chat.text
        system, question = chat.backend.asked[-1]
        assert system.role == "system"
        assert "the whales were blue" in system.content
        assert question.content.startswith("second")
        new = chat.controller.tree
        await chat.until(lambda: new.id is not None and new.id != old.id)
        await chat.press("ctrl+n")
        assert chat.controller.tree.system is None
        with SessionStore.open(home / "sessions.db") as store:
            assert "the whales were blue" in (store.get(new.id).system or "")
            assert [message.role for message in store.tree(old.id)] == ["user", "assistant", "user"]


@drive
async def test_a_summary_that_is_stopped_leaves_the_chat_as_it_was(home: Path) -> None:
    gate = threading.Semaphore(0)
    backend = FakeBackend("word " * 30, context=120, gate=gate)
    async with open_chat(home, backend) as chat:
        gate.release(31)
        await chat.ask("first " * 40)
        await chat.say("second " * 20)
        await choose(chat, "summary")
        gate.release(2)
        await chat.until("summary for a new chat")
        await chat.until(lambda: chat.controller.reply and chat.controller.reply.node.content)
        await chat.press("escape")
        await chat.until("there is no summary")
        assert [content.split()[0] for content in chat.contents] == ["first", "word", "second"]


@drive
async def test_stopping_at_the_limit_says_why_and_asks_again_at_the_next_question(home: Path) -> None:
    async with open_chat(home, fake()) as chat:
        await fill(chat)
        await choose(chat, "stop")
        await chat.until("the context holds 60")
        assert len(chat.backend.asked) == 2
        await chat.say("third")
        await choose(chat, "edit")
        assert chat.prompt.text == "third"


@drive
async def test_a_question_that_is_too_long_by_itself_is_told_at_once(home: Path) -> None:
    async with open_chat(home, fake()) as chat:
        await chat.say("long " * 100)
        await chat.until("the context holds 60")
        assert len(chat.app.screen_stack) == 1


@pytest.mark.parametrize(
    ("way", "told"),
    [("forget", "no longer sees the first 2"), ("summary", "goes on from a summary"), ("stop", "the context holds 60")],
)
@drive
async def test_the_config_chooses_for_every_chat(home: Path, way: Any, told: str) -> None:
    backend = FakeBackend(lambda m: "short" if "Summarise" in m[-1].content else "word " * 30, context=60)
    async with open_chat(home, backend, config=ChatConfig(when_full=way)) as chat:
        await fill(chat)
        await chat.until(told)
        assert len(chat.app.screen_stack) == 1


def test_an_unknown_way_is_named_with_the_ways_and_the_chat_asks(home: Path) -> None:
    faults: list[str] = []
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[chat]\nwhen_full = "drop"\n')
    assert ChatConfig.of_config(read_config(report=faults.append)).when_full == "ask"
    (fault,) = faults
    assert "when_full is 'drop'; it must be one of 'ask', 'forget'" in fault
    config_path().write_text('[chat]\nwhen_full = "summary"\n')
    assert ChatConfig.of_config(read_config()).when_full == "summary"


# With the real engine: the demo model in a context of 160 tokens.

QUESTION = "How do I save a profile?"


def demo() -> dict[str, Any]:
    options = EngineOptions(device="cpu", ctx_size=160)
    return {
        "loader": LocalModelLoader(options),
        "settings": ChatSettings("demo", chosen={"temperature": 0.0, "max_tokens": 40}),
    }


async def until_full(chat: Chat) -> int:
    """Ask until nothing fits any more; return how many messages there are, the open question among them."""
    await chat.ready()
    for _ in range(12):
        await chat.say(QUESTION)
        await chat.until(lambda: chat.controller.reply is None and chat.controller.status.idle)
        if chat.controller._overflow.asks:  # the dialog comes a message later
            await chat.until(lambda: len(chat.app.screen_stack) > 1)
            return len(chat.contents)
    raise AssertionError("the context never filled")


def used(chat: Chat) -> int:
    return int(chat.controller.tree.leaf.info["prompt_tokens"])


@drive
async def test_the_engine_answers_without_the_oldest_turns(home: Path) -> None:
    async with open_chat(home, **demo()) as chat:
        count = await until_full(chat)
        await choose(chat, "forget")
        await chat.until("the model no longer sees the first")
        await chat.until(lambda: len(chat.contents) == count + 1 and chat.controller.reply is None)
        assert chat.contents[-1]
        assert used(chat) <= 120
        engine = chat.app.worker.loaded.backend.engine
        cached = engine.tokenizer.decode(engine.prefix_cache.newest.ids)
        assert cached.count(QUESTION) < (count + 1) // 2


@drive
async def test_the_engine_writes_the_summary_with_which_a_new_chat_begins(home: Path) -> None:
    async with open_chat(home, **demo()) as chat:
        await until_full(chat)
        old = chat.controller.tree
        await choose(chat, "summary")
        await chat.until("this chat goes on from a summary")
        await chat.until(lambda: len(chat.contents) == 2 and chat.controller.reply is None)
        tree = chat.controller.tree
        assert tree is not old
        written = (tree.system or "").partition("\n")[2]
        assert written
        assert tree.path()[0].content == QUESTION
        assert tree.path()[1].content
        engine = chat.app.worker.loaded.backend.engine
        assert written in engine.tokenizer.decode(engine.prefix_cache.newest.ids)
        await chat.until(lambda: tree.id)
        with SessionStore.open(home / "sessions.db") as store:
            assert written in (store.get(tree.id).system or "")


@drive
async def test_the_engine_is_left_in_peace_when_the_user_stops(home: Path) -> None:
    async with open_chat(home, **demo()) as chat:
        count = await until_full(chat)
        engine = chat.app.worker.loaded.backend.engine
        before = list(engine.prefix_cache.newest.ids)
        await choose(chat, "stop")
        await chat.until("the context holds 160")
        assert len(chat.contents) == count
        assert list(engine.prefix_cache.newest.ids) == before
        assert len(pieces(chat.contents[-1])) > 0
