"""/compare: two answers side by side, what differs, and with which one the chat goes on."""

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chat import Chat, drive, open_chat
from support.fake_engine import FakeBackend

from dslite.app.chat.comparison import differences
from dslite.app.sessions.store import SessionStore
from dslite.app.settings.config_file import config_path
from dslite.app.tui.screens.compare import CompareScreen

FIRST, SECOND = "The whale is a mammal.", "The shark is a fish."


def backend(*answers: str, **more: Any) -> FakeBackend:
    left = list(answers)
    return FakeBackend(lambda _: left.pop(0), **more)


async def compared(chat: Chat) -> CompareScreen:
    """The screen, once both answers are whole and drawn."""
    await chat.until(lambda: isinstance(chat.app.screen, CompareScreen))
    screen: CompareScreen = chat.app.screen  # type: ignore[assignment]
    sides = screen._comparison.sides
    await chat.until(lambda: screen._drawn[:2] == tuple((side.text, True) for side in sides))
    await chat.pilot.pause()
    return screen


@drive
async def test_two_branches_stand_in_columns_and_one_is_chosen(home: Path) -> None:
    async with open_chat(home, backend(FIRST, SECOND), size=(110, 36)) as chat:
        await chat.ask("what is it?")
        await chat.press("ctrl+r")
        await chat.until("◂ 2 of 2 ▸")
        await chat.ready()
        await chat.say("/compare")
        await compared(chat)
        row = next(line for line in chat.text.splitlines() if FIRST in line)
        assert SECOND in row
        assert row.index(SECOND) > 50
        assert len(chat.backend.asked) == 2  # nothing was generated
        await chat.press("left", "enter")
        await chat.until(lambda: chat.contents[-1] == FIRST)
    with SessionStore.open(home / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        assert [message.content for message in store.path(talk.leaf)][-1] == FIRST


@drive
async def test_a_lone_answer_gets_a_second_and_escape_leaves_the_chat_as_it_was(home: Path) -> None:
    async with open_chat(home, backend(FIRST, SECOND)) as chat:
        await chat.ask("what is it?")
        await chat.say("/compare")
        await compared(chat)
        assert FIRST in chat.text
        assert SECOND in chat.text
        await chat.press("escape")
        await chat.until(lambda: chat.contents[-1] == FIRST)
        await chat.until("◂ 1 of 2 ▸")


@drive
async def test_two_temperatures_are_answered_in_turn_and_change_nothing_else(home: Path) -> None:
    async with open_chat(home, backend("before", FIRST, SECOND), size=(110, 36)) as chat:
        await chat.say("/set temperature 0.5")
        await chat.ask("what is it?")
        await chat.say("/compare 0.2 0.9")
        await compared(chat)
        assert [params.temperature for params in chat.backend.params] == [0.5, 0.2, 0.9]
        assert "temperature 0.2" in chat.text
        assert "temperature 0.9" in chat.text
        assert chat.backend.asked[1] == chat.backend.asked[2]
        await chat.press("right", "enter")
        await chat.until(lambda: chat.contents == ["what is it?", SECOND])
        await chat.until("◂ 3 of 3 ▸")
        assert chat.controller.settings.sampling()["temperature"] == 0.5


@drive
async def test_two_profiles_answer_with_their_own_system_messages(home: Path) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[profiles.cold]\nsystem = "Be cold."\ntemperature = 0.1\n[profiles.bare]\n')
    async with open_chat(home, backend("before", FIRST, SECOND)) as chat:
        await chat.say("/system Be warm.")
        await chat.ask("what is it?")
        await chat.say("/compare cold bare")
        await compared(chat)
        systems = [[m.content for m in asked if m.role == "system"] for asked in chat.backend.asked]
        assert systems == [["Be warm."], ["Be cold."], []]
        assert chat.backend.params[1].temperature == 0.1
        await chat.press("escape")
        await chat.until(lambda: chat.contents[-1] == "before")
        assert chat.controller.settings.profile.name == "plain"
        assert chat.controller.tree.system == "Be warm."


@drive
async def test_escape_stops_an_answer_that_grows_and_no_second_one_begins(home: Path) -> None:
    gate = threading.Semaphore(20)
    async with open_chat(home, backend("before", "one two three four five " * 20, SECOND, gate=gate)) as chat:
        await chat.ask("what is it?")
        await chat.say("/compare 0.2 0.9")
        await chat.until(lambda: isinstance(chat.app.screen, CompareScreen) and "one" in chat.text)
        await chat.press("escape")
        await chat.until(lambda: chat.controller.reply is None)
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.contents[-1] == "before"
        assert len(chat.backend.asked) == 2


@pytest.mark.parametrize("size", [(110, 36), (80, 24), (60, 20)])
@drive
async def test_chinese_answers_keep_their_columns(home: Path, size: tuple[int, int]) -> None:
    first, second = "鲸鱼是一种哺乳动物，" * 6, "鲨鱼是一种鱼，" * 6
    async with open_chat(home, backend(first, second), size=size) as chat:
        await chat.ask("它是什么？")
        await chat.say("/compare")
        await compared(chat)
        shown = "".join(chat.text.split())
        assert shown.count("哺") == 6
        assert shown.count("鲨") == 6
        for line in chat.text.splitlines():
            assert sum(2 if ord(char) > 0x2E7F else 1 for char in line) <= size[0]


@pytest.mark.parametrize(
    ("words", "fault"), [("0.2 0.9 1", "takes two"), ("9", "must be"), ("nobody", "there is no profile")]
)
@drive
async def test_what_cannot_be_compared_is_said(home: Path, words: str, fault: str) -> None:
    async with open_chat(home) as chat:
        await chat.ask("what is it?")
        await chat.say(f"/compare {words}")
        await chat.until(
            lambda: "!" in chat.text or "must be" in chat.text or "takes two" in chat.text or "no profile" in chat.text
        )
        assert len(chat.app.screen_stack) == 1
        assert len(chat.backend.asked) == 1


def test_the_words_that_differ_are_marked_and_no_others() -> None:
    first, second = differences([FIRST, SECOND])
    assert [text for text, differs in first if differs] == ["whale", "mammal"]
    assert [text for text, differs in second if differs] == ["shark", "fish"]
    first, second = differences(["鲸鱼很大", "鲨鱼很大"])
    assert [text for text, differs in first if differs] == ["鲸"]


@given(st.text(), st.text())
def test_marked_parts_are_the_whole_texts(first: str, second: str) -> None:
    for text, parts in zip((first, second), differences([first, second]), strict=True):
        assert "".join(part for part, _ in parts) == text
        assert all(part for part, _ in parts)
