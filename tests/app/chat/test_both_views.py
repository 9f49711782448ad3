"""One script of actions through the full screen and through the line mode: both save the same conversations."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from support.chat import PATIENCE_S, open_chat
from support.fake_engine import FakeBackend, FakeLoader, pieces

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.controller import ChatController
from dslite.app.chat.launch import ChatConfig, ChatLaunch
from dslite.app.chat.settings import ChatSettings
from dslite.app.plain.chat import PlainChat
from dslite.app.plain.line_input import LineInput
from dslite.app.sessions.store import SessionStore
from dslite.app.settings.config_file import config_path
from dslite.app.settings.profiles import get_profile
from dslite.runtime.downloads.hub import parse_model

CONTEXT = 120
PROFILE = '[profiles.cold]\nsystem = "Be cold."\ntemperature = 0.1\n'
INFO = {
    *("model", "weights", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("prefill_s", "decode_s", "ttft_s", "finished", "temperature"),
}


def answer(messages: Sequence[Any]) -> str:
    """Depends on all that the model was given."""
    if "Summarise" in messages[-1].content:
        return "they talked of whales"
    return f"answer {len(messages)} to {messages[-1].content.split()[0]} " + "word " * 20


class Script(Protocol):
    """What a user can do in either front end."""

    controller: ChatController
    backend: FakeBackend

    async def enter(self, text: str) -> None:
        """Type a line and wait for what it does."""
        ...

    async def stop_after(self, text: str, tokens: int) -> None:
        """Send a message and stop its answer once it has so many tokens."""
        ...


async def twelve_actions(chat: Script, other_model: Path) -> None:
    """New, load, profile, set, regenerate, edit, branch, overflow by forgetting, by a summary, model switch, stop,
    continue."""
    await chat.enter("whales")
    await chat.enter("/regen")
    await chat.enter("/branch 1")
    await chat.enter("/revise")
    await chat.enter("sparrows")
    first = chat.controller.tree
    await until(chat, lambda: first.id is not None)
    await chat.enter("/new")
    await chat.enter("/profile cold")
    await chat.enter("/set temperature 0.7")
    await chat.enter("/set top_k 5")
    await chat.enter("cold " * 10)
    await chat.enter(f"/model {other_model}")
    await chat.stop_after("stopped", 3)
    await chat.enter("/continue")
    await chat.enter("/new")
    await chat.enter(f"/load {first.id}")
    assert chat.controller.tree.id == first.id
    assert chat.controller.settings.profile.name == "plain"
    await chat.enter("forget " * 50)
    await chat.enter("/new")
    chat.controller._overflow.choose("summary")
    await chat.enter("long " * 50)
    await chat.enter("summary " * 45)
    assert "they talked of whales" in (chat.controller.tree.system or "")
    await chat.enter("/new")
    assert chat.controller.tree.system is None or "whales" not in chat.controller.tree.system
    await chat.enter("last")


async def until(chat: Script, condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        chat.controller.tick(timeout=0.01)
        await asyncio.sleep(0)


def saved(file: Path) -> list[dict[str, Any]]:
    """All conversations, the oldest first, without ids and times."""
    with SessionStore.open(file) as store:
        chats = sorted(store.conversations(limit=None), key=lambda chat: chat.id)
        return [
            {
                "title": chat.title,
                "model": chat.model,
                "profile": chat.profile,
                "system": chat.system,
                "leaf": [message.id for message in store.tree(chat.id)].index(chat.leaf or 0),
                "messages": _messages(store, chat.id),
            }
            for chat in chats
        ]


def _is_time(key: str) -> bool:
    return key.endswith("_s") or key == "finished"


def _messages(store: SessionStore, chat: str) -> list[dict[str, Any]]:
    messages = store.tree(chat)
    ids = [message.id for message in messages]
    return [
        {
            "role": message.role,
            "content": message.content,
            "parent": ids.index(message.parent) if message.parent is not None else None,
            "tokens": message.token_ids,
            "reason": message.finish_reason,
            "info": {key: value for key, value in message.info.items() if not _is_time(key)},
            "times": sorted(key for key in message.info if _is_time(key)),
            "growing": message.growing,
        }
        for message in messages
    ]


class GatedBackend(FakeBackend):
    """Stops an answer by itself once it has `stop_at` tokens and the user has asked for that."""

    stop: Callable[[], object] | None = None
    stop_at = 0

    def _wait(self, started: float, place: int, cancel: Any) -> bool:
        if self.stop is not None and place == self.stop_at:
            return not cancel.wait(PATIENCE_S)
        return super()._wait(started, place, cancel)


class ScreenScript:
    """Types into the full screen."""

    def __init__(self, chat: Any) -> None:
        self._chat = chat
        self.controller: ChatController = chat.controller
        self.backend: FakeBackend = chat.backend

    async def _settled(self) -> None:
        await self._chat.pilot.pause()
        await self._chat.until(lambda: not self.controller.busy)
        await self._chat.pilot.pause()

    async def enter(self, text: str) -> None:
        await self._settled()
        await self._chat.say(text)
        await self._settled()

    async def stop_after(self, text: str, tokens: int) -> None:
        backend: Any = self.backend
        backend.stop, backend.stop_at = self.controller.stop, tokens
        await self._chat.say(text)
        await self._chat.until(lambda: self.controller.reply is not None and self.controller.reply.count == tokens)
        await self._chat.press("escape")
        await self._settled()
        backend.stop = None


class NoInput(LineInput):
    """Lines come from the test."""

    def __init__(self) -> None:
        self.interactive, self.prefill, self._readline = False, "", None


class PlainScript:
    """Types into the line mode."""

    def __init__(self, chat: PlainChat, backend: FakeBackend) -> None:
        self._chat = chat
        self.controller, self.backend = chat.controller, backend

    async def enter(self, text: str) -> None:
        self._chat.take(text)

    async def stop_after(self, text: str, tokens: int) -> None:
        backend: Any = self.backend
        backend.stop, backend.stop_at = self.controller.stop, tokens
        self.controller.send(text)
        await until(self, lambda: self.controller.reply is not None and self.controller.reply.count == tokens)
        self.controller.stop()
        await until(self, lambda: not self.controller.busy)
        backend.stop = None


@pytest.fixture
def profiles(home: Path) -> Iterator[None]:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text(PROFILE)
    return


def on_screen(folder: Path, other_model: Path) -> tuple[list[dict[str, Any]], FakeBackend]:
    backend = GatedBackend(answer, context=CONTEXT)

    async def run() -> None:
        config = ChatConfig(when_full="forget")
        async with open_chat(
            folder, backend, config=config, settings=ChatSettings("demo", get_profile("plain"))
        ) as chat:
            await chat.ready()
            await twelve_actions(ScreenScript(chat), other_model)

    asyncio.run(run())
    return saved(folder / "sessions.db"), backend


def line_by_line(folder: Path, other_model: Path) -> tuple[list[dict[str, Any]], FakeBackend]:
    backend = GatedBackend(answer, context=CONTEXT)
    chat = plain_chat(folder, backend)
    chat.start()
    asyncio.run(twelve_actions(PlainScript(chat, backend), other_model))
    chat.close()
    return saved(folder / "sessions.db"), backend


def plain_chat(folder: Path, backend: FakeBackend) -> PlainChat:
    writer = ConversationWriter(lambda: SessionStore.open(folder / "sessions.db"))
    settings = ChatSettings("demo", get_profile("plain"))
    launch = ChatLaunch(
        parse_model("demo"), settings, FakeLoader(backend), writer, config=ChatConfig(when_full="forget")
    )
    return PlainChat(launch, NoInput())


def test_twelve_actions_are_saved_alike_by_both_front_ends(home: Path, profiles: None) -> None:
    folders = [home / name for name in ("screen", "lines", "other")]
    for folder in folders:
        folder.mkdir()
    screen, of_screen = on_screen(folders[0], folders[2])
    lines, of_lines = line_by_line(folders[1], folders[2])
    assert lines == screen
    asked = [[(message.role, message.content) for message in messages] for messages in of_screen.asked]
    assert [[(message.role, message.content) for message in messages] for messages in of_lines.asked] == asked
    assert of_lines.params == of_screen.params

    first, cold, _, _, last = screen
    roots = [message for message in first["messages"] if message["parent"] is None]
    assert [root["content"] for root in roots] == ["whales", "sparrows"]
    assert [message["parent"] for message in first["messages"][:3]] == [None, 0, 0]  # /regen made a branch
    assert first["profile"] == "plain"
    assert cold["profile"] == "cold"
    assert cold["system"] == "Be cold."
    assert cold["model"] == str(folders[2])
    assert cold["messages"][-1]["info"]["model"] == str(folders[2])
    assert cold["messages"][-1]["reason"] == "stop"
    assert last["messages"][0]["content"] == "last"
    answers = [message for chat in screen for message in chat["messages"] if message["role"] == "assistant"]
    assert all({*message["info"], *message["times"]} == INFO for message in answers)


def test_a_new_chat_by_lines_has_no_summary_of_the_one_before(home: Path) -> None:
    backend = FakeBackend(answer, context=CONTEXT)
    chat = plain_chat(home, backend)
    chat.start()
    chat.controller._overflow.choose("summary")
    chat.take("long " * 50)
    chat.take("summary " * 45)
    assert "they talked of whales" in backend.asked[-1][0].content
    chat.take("/new")
    chat.take("anew")
    chat.close()
    assert [message.content for message in backend.asked[-1]] == ["anew"]


def test_loading_a_chat_by_lines_restores_its_profile(home: Path, profiles: None) -> None:
    backend = FakeBackend(answer)
    chat = plain_chat(home, backend)
    chat.start()
    chat.take("/profile cold")
    chat.take("first")
    tree = chat.controller.tree
    asyncio.run(until(PlainScript(chat, backend), lambda: tree.id is not None))
    identity = tree.id
    chat.take("/new")
    chat.take("/profile plain")
    chat.take(f"/load {identity}")
    chat.take("second")
    chat.close()
    assert backend.params[-1].temperature == 0.1
    assert backend.asked[-1][0].content == "Be cold."


def test_an_answer_by_lines_is_saved_with_all_figures(home: Path) -> None:
    chat = plain_chat(home, FakeBackend("four words of text"))
    chat.start()
    chat.take("go")
    chat.close()
    [[_, message]] = [conversation["messages"] for conversation in saved(home / "sessions.db")]
    assert {*message["info"], *message["times"]} == INFO
    assert message["info"]["completion_tokens"] == len(pieces("four words of text"))


def test_a_question_that_does_not_fit_without_all_older_turns_is_refused_once(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = FakeBackend(answer, context=CONTEXT)
    chat = plain_chat(home, backend)
    chat.start()
    chat.take("first")
    chat.take("long " * 130)
    chat.close()
    assert [len(messages) for messages in backend.asked] == [1, 3, 1]
    assert "the context holds 120" in capsys.readouterr().err


def test_both_front_ends_have_a_handler_for_every_command(home: Path) -> None:
    from dslite.app.chat.slash_commands import COMMANDS

    names = {command.name for command in COMMANDS}
    chat = plain_chat(home, FakeBackend())
    assert set(chat.commands.handlers) == names
    chat._launch.writer.close()

    async def run() -> None:
        async with open_chat(home) as screen:
            assert set(screen.app.chat.commands.handlers) == names

    asyncio.run(run())


def test_an_answer_that_is_cut_by_the_end_of_the_program_is_saved_with_all_figures(home: Path) -> None:
    backend = GatedBackend(answer)
    chat = plain_chat(home, backend)
    chat.start()
    backend.stop, backend.stop_at = chat.controller.stop, 3
    chat.controller.send("go")
    script = PlainScript(chat, backend)
    asyncio.run(until(script, lambda: chat.controller.reply is not None and chat.controller.reply.count == 3))
    chat.close()
    [[_, message]] = [conversation["messages"] for conversation in saved(home / "sessions.db")]
    assert {*message["info"], *message["times"]} == INFO
    assert message["reason"] == "interrupted"
    assert message["info"]["completion_tokens"] == 3
    assert len(message["tokens"]) == 3
