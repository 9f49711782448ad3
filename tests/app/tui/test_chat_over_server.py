"""The full-screen chat over `dslite serve`, and over servers that break."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.chat import Chat, drive, open_chat
from support.scripted_server import HANG, ScriptedServer, delta, events, refusal
from support.serving import Server

from dslite.app.chat.model_loading import RemoteModelLoader
from dslite.app.chat.settings import ChatSettings
from dslite.app.settings.endpoint import find_served
from dslite.app.settings.profiles import Profile
from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done
from dslite.runtime.text.message import Message

QUESTION = "How do I save a profile?"


@contextlib.asynccontextmanager
async def chat_over(url: str, home: Path, model: str = "demo", profile: Profile | None = None) -> AsyncIterator[Chat]:
    served = find_served(url, None, model, None)
    assert served is not None
    settings = ChatSettings(model, chosen={"temperature": 0.0}, **({"profile": profile} if profile else {}))
    async with open_chat(home, model=model, loader=RemoteModelLoader(served), settings=settings) as chat:
        await chat.ready()
        yield chat


async def ask(chat: Chat, text: str) -> str:
    """Send a message; its answer."""
    before = len(chat.contents)
    await chat.say(text)
    await chat.until(lambda: len(chat.contents) >= before + 2 and chat.controller.reply is None)
    return chat.contents[-1]


def engines_answer(engine: Engine, *turns: str, system: str | None = None) -> str:
    """What the engine answers to a conversation that ends with a question."""
    messages = [Message("system", system)] if system else []
    messages += [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(turns)]
    events = LocalChatBackend(engine, "demo").reply(messages, SamplingParams(temperature=0), threading.Event())
    (done,) = [event for event in events if isinstance(event, Done)]
    return done.text


def saved_messages(home: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(home / "sessions.db")) as database:
        return list(database.execute("SELECT role, content FROM messages ORDER BY rowid"))


@drive
async def test_turns_branches_and_sessions_are_those_of_the_model_at_home(
    home: Path, demo_server: Server, demo_engine: Engine
) -> None:
    async with chat_over(demo_server.url, home) as chat:
        first = await ask(chat, QUESTION)
        assert first == engines_answer(demo_engine, QUESTION)
        second = await ask(chat, "What is a slot?")
        assert second == engines_answer(demo_engine, QUESTION, first, "What is a slot?")
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.controller.reply is None and "2 of 2" in chat.text)
        assert chat.contents == [QUESTION, first, "What is a slot?", second]
    assert [text for _, text in saved_messages(home)] == [QUESTION, first, "What is a slot?", second, second]


@drive
async def test_a_profiles_system_message_goes_to_the_server(
    home: Path, demo_server: Server, demo_engine: Engine
) -> None:
    profile = Profile("terse", system="Answer in one sentence.")
    async with chat_over(demo_server.url, home, profile=profile) as chat:
        answer = await ask(chat, QUESTION)
        assert "profile terse" in chat.text
    assert answer == engines_answer(demo_engine, QUESTION, system="Answer in one sentence.")


@drive
async def test_what_a_server_cannot_say_is_shown_as_unknown(home: Path, demo_server: Server) -> None:
    async with chat_over(demo_server.url, home) as chat:
        await ask(chat, QUESTION)
        assert demo_server.address[0] in chat.text
        assert "of 4,096" in chat.text  # the context is in the server's list of models
        await chat.pilot.resize_terminal(130, 40)
        await chat.press("f2")
        await chat.until("not known")


@drive
async def test_esc_stops_the_server_and_keeps_what_came(home: Path) -> None:
    with ScriptedServer([[*events(delta("so "), delta("far"), whole=False), HANG]]) as server:
        async with chat_over(server.url, home, model="m") as chat:
            await chat.say("hello")
            await chat.until("so far")
            await chat.press("escape")
            await chat.until(lambda: chat.controller.reply is None)
            assert chat.contents == ["hello", "so far"]
            assert server.left.wait(10)
    assert saved_messages(home)[-1] == ("assistant", "so far")


@drive
async def test_a_lost_connection_keeps_the_answer_and_offers_to_go_on(home: Path) -> None:
    broken = events(delta("so "), delta("far"), whole=False)
    rest = events(delta(", so good", "stop"), "data: [DONE]\n\n")
    with ScriptedServer([broken, rest]) as server:
        async with chat_over(server.url, home, model="m") as chat:
            await chat.say("hello")
            await chat.until("was lost in the middle of the answer")
            await chat.until(lambda: chat.controller.reply is None)
            assert chat.contents == ["hello", "so far"]
            await chat.say("/continue")
            await chat.until(lambda: chat.contents == ["hello", "so far, so good"])
        asked: list[dict[str, Any]] = [json.loads(text.partition(b"\r\n\r\n")[2]) for text in server.asked]
    assert asked[1]["messages"][-1] == {"role": "assistant", "content": "so far"}


@drive
async def test_a_conversation_over_a_server_is_listed(home: Path, demo_server: Server) -> None:
    async with chat_over(demo_server.url, home) as chat:
        await ask(chat, QUESTION)
        await chat.press("ctrl+o")
        await chat.until(QUESTION)


def reasoning(text: str) -> dict[str, Any]:
    """A chunk of a model's reasoning."""
    return {"choices": [{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": None}]}


THOUGHTS = [reasoning("first "), reasoning("\x1b[31mthis, "), reasoning("then that")]
HEAD_LINE = "thought for 3 tokens"


@drive
async def test_reasoning_is_counted_in_the_status_while_it_comes(home: Path) -> None:
    with ScriptedServer([[*events(*THOUGHTS, whole=False), HANG]]) as server:
        async with chat_over(server.url, home, model="m") as chat:
            await chat.say("hello")
            await chat.until(lambda: "thinking · 3 tokens" in chat.status)
            await chat.until(f"▸ {HEAD_LINE}")
            await chat.press("escape")
            await chat.until(lambda: chat.controller.reply is None)
            assert chat.contents == ["hello"], "reasoning alone is no answer"


@pytest.mark.parametrize("by", ["enter", "click"])
@drive
async def test_reasoning_is_folded_opens_and_is_no_part_of_the_answer(home: Path, by: str) -> None:
    chunks = [*THOUGHTS, delta("The *answer*."), delta(" Done.", "stop"), "data: [DONE]\n\n"]
    with ScriptedServer([events(*chunks), events(delta("yes", "stop"), "data: [DONE]\n\n")]) as server:
        async with chat_over(server.url, home, model="m") as chat:
            await ask(chat, "hello")
            assert "thinking" not in chat.status
            assert f"▸ {HEAD_LINE}" in chat.text
            assert "then that" not in chat.text
            await unfold(chat, by)
            await chat.until(f"▾ {HEAD_LINE}")
            assert "first ␛[31mthis, then that" in chat.text
            await unfold(chat, by)
            await chat.until(f"▸ {HEAD_LINE}")
            assert "then that" not in chat.text
            assert chat.contents == ["hello", "The *answer*. Done."]
            assert await ask(chat, "more") == "yes"
            assert HEAD_LINE in chat.text, "a redrawn conversation still has it"
        asked = json.loads(server.asked[1].partition(b"\r\n\r\n")[2])
    assert asked["messages"][1] == {"role": "assistant", "content": "The *answer*. Done."}
    assert saved_messages(home)[1] == ("assistant", "The *answer*. Done.")


async def unfold(chat: Chat, by: str) -> None:
    """Choose the answer and press Enter, or click on the line that says how long the model thought."""
    if by == "enter":
        if not chat.transcript.has_focus:
            await chat.press("shift+tab")
        await chat.press("enter")
    else:
        line = next(place for place, text in enumerate(chat.text.splitlines()) if HEAD_LINE in text)
        await chat.pilot.click(offset=(6, line))


@drive
async def test_notices_of_a_server_stand_in_the_chat(home: Path) -> None:
    refused = refusal(400, json.dumps({"error": {"message": "unknown parameter: 'top_k'", "param": "top_k"}}))
    answer = events(delta("cut", "content_filter"), "data: [DONE]\n\n")
    with ScriptedServer([refused, answer]) as server:
        async with chat_over(server.url, home, model="m") as chat:
            await chat.say("/set top_k 5")
            await ask(chat, "hello")
            await chat.until("does not take top_k: it uses its own value")
            await chat.until("cut the answer with its content filter")
            assert chat.contents == ["hello", "cut"]
    assert [text for _, text in saved_messages(home)] == ["hello", "cut"]


@drive
async def test_a_busy_server_is_waited_for_and_the_chat_says_so(home: Path) -> None:
    busy = [b"HTTP/1.1 429 No\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy"]
    answer = events(delta("at last", "stop"), "data: [DONE]\n\n")
    with ScriptedServer([busy, answer]) as server:
        async with chat_over(server.url, home, model="m") as chat:
            assert await ask(chat, "hello") == "at last"
            await chat.until("is busy: trying again in 0 s")
