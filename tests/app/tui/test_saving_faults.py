"""A disk that is full, and a database that only reads, while a chat is held: it goes on, says so, and loses nothing."""

import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chat import Chat, drive, open_chat
from support.fake_engine import FakeBackend
from support.terminal import Terminal, fake_chat

from dslite.app.chat.model_loading import LocalModelLoader
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions import database
from dslite.app.sessions.store import SessionStore
from dslite.runtime.engine_options import EngineOptions

ANSWER = "here is an answer"


def saved(home: Path) -> list[str]:
    """The latest conversation."""
    with SessionStore.open(home / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        return [message.content for message in store.path(talk.leaf)]


def pages(chat: Chat, most: Callable[[int], int]) -> None:
    """SQLite's own way to a disk that is full: no more than so many pages."""

    def limit(store: SessionStore) -> None:
        with store.database.reading() as db:
            count = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {most(count)}")

    chat.controller.writer.ask(limit).result(30)


@drive
async def test_a_full_disk_costs_the_saving_until_there_is_room_again(home: Path) -> None:
    answer = "a long answer " * 600  # more than the free part of a page
    async with open_chat(home, FakeBackend(lambda messages: f"{len(messages)}: {answer}")) as chat:
        await chat.ask("first")
        pages(chat, lambda count: count)
        await chat.ask("second")
        await chat.until("this chat is not saved")
        await chat.until("make room on the disk")
        assert "database or disk is full" in chat.transcript.items[-1].text
        await chat.until(lambda: "not saved" in chat.status)
        await chat.ask("third")
        assert len(chat.contents) == 6
        assert chat.contents[5].startswith("5: a long answer")
        pages(chat, lambda _: 1_000_000)
        await chat.ask("fourth")
        await chat.until("saving works again: nothing is missing")
        assert "not saved" not in chat.status
        shown = chat.contents
    assert saved(home) == shown
    assert len(shown) == 8


@drive
async def test_a_disk_that_fills_in_the_middle_of_an_answer_takes_nothing_from_the_screen(home: Path) -> None:
    gate = threading.Semaphore(0)
    async with open_chat(home, FakeBackend("word " * 20_000, gate=gate)) as chat:
        await chat.say("go on and on")
        gate.release(100)
        await chat.until(lambda: chat.controller.tree.id)
        pages(chat, lambda count: count)
        gate.release(19_000)
        await chat.until(lambda: "not saved" in chat.status)
        await chat.press("escape")
        await chat.until("this chat is not saved")
        assert chat.contents[-1].startswith("word " * 100)
        await chat.say(f"/save {home / 'kept.md'}")
        await chat.until(lambda: (home / "kept.md").exists())
        assert chat.contents[-1].strip() in (home / "kept.md").read_text()


def test_a_disk_that_takes_no_byte_from_a_chat_on_a_terminal(home: Path) -> None:
    with fake_chat(home, text=ANSWER) as terminal:
        ask(terminal, "first question")
        resource.prlimit(terminal.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        ask(terminal, "second question")
        terminal.wait("this chat is not saved")
        ask(terminal, "third question")
        terminal.wait("not saved · ")
        resource.prlimit(terminal.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        ask(terminal, "fourth question")
        terminal.wait("nothing is missing")
        terminal.press("ctrl+d")
        assert terminal.end() == 0
    assert saved(home)[::2] == [f"{which} question" for which in ("first", "second", "third", "fourth")]
    assert set(saved(home)[1::2]) == {ANSWER}


def ask(terminal: Terminal, text: str) -> None:
    """Send a message and wait for the end of its answer."""
    terminal.wait(lambda: "ready" in terminal.text or "tok/s last" in terminal.text)
    terminal.type(f"{text}\r")
    terminal.wait(lambda: ANSWER in terminal.text.partition(f"    {text}")[2])
    terminal.wait("tok/s last")


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file read-only for root, too."""
    really = os.open

    def forbid(path: Path) -> None:
        def opened(name: Any, flags: int, *rest: Any, **more: Any) -> int:
            if Path(name) == path and flags & (os.O_RDWR | os.O_WRONLY):
                raise PermissionError(13, "Permission denied", str(name))
            return really(name, flags, *rest, **more)

        monkeypatch.setattr(database.os, "open", opened)

    return forbid


def with_a_talk(home: Path) -> str:
    with SessionStore.open(home / "sessions.db") as store:
        talk = store.create(model="demo")
        asked = store.append(talk.id, "user", "about whales", parent=None)
        store.append(talk.id, "assistant", "they are blue", parent=asked.id, finish_reason="stop")
    return talk.id


@drive
async def test_a_read_only_database_is_read_and_the_chat_goes_on_unsaved(
    home: Path, read_only: Callable[[Path], None]
) -> None:
    identity = with_a_talk(home)
    read_only(home / "sessions.db")
    before = (home / "sessions.db").read_bytes()
    async with open_chat(home, resume=lambda _: identity) as chat:
        await chat.until("they are blue")
        await chat.ask("and sparrows?")
        await chat.until("this chat is not saved")
        await chat.until("readonly")
        await chat.until(lambda: "not saved" in chat.status)
        assert chat.contents == ["about whales", "they are blue", "and sparrows?", "Hello, *world*."]
        assert [message.content for message in chat.backend.asked[-1]] == chat.contents[:3]
        await chat.press("ctrl+o")
        await chat.until("search in titles")
        await chat.until("about whales")
        await chat.press("ctrl+d")
        await chat.press("escape")
        await chat.say(f"/save {home / 'kept.md'}")
        await chat.until(lambda: (home / "kept.md").exists())
    assert (home / "sessions.db").read_bytes() == before


@drive
async def test_the_engine_answers_on_while_nothing_can_be_saved(home: Path, read_only: Callable[[Path], None]) -> None:
    with_a_talk(home)
    read_only(home / "sessions.db")
    settings = ChatSettings("demo", chosen={"temperature": 0.0, "max_tokens": 20})
    model = LocalModelLoader(EngineOptions(device="cpu"))
    async with open_chat(home, loader=model, settings=settings) as chat:
        for count in (2, 4):
            await chat.say("How do I save a profile?")
            await chat.until(lambda count=count: len(chat.contents) == count and chat.controller.reply is None)
        assert all(chat.contents)
        assert chat.controller.tree.leaf.info["cached_tokens"] > 0
        await chat.until("this chat is not saved")
