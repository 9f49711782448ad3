"""F6 and /tokens: the probabilities of an answer's tokens, and the branch that begins with another one."""

from pathlib import Path

import pytest
from rich.style import Style
from support.chat import Chat, drive, open_chat
from support.chat_texts import prose
from support.fake_engine import FakeBackend, pieces

from dslite.app.tui.screens.token_view import TokenView

ANSWER = "one two three four five six seven eight nine ten"


async def opened(chat: Chat) -> TokenView:
    await chat.press("f6")
    await chat.until(lambda: isinstance(chat.app.screen, TokenView))
    await chat.until("Token ")
    screen = chat.app.screen
    assert isinstance(screen, TokenView)
    return screen


@drive
async def test_the_first_unlikely_token_is_shown_with_its_candidates(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=(110, 36)) as chat:
        await chat.ask("count")
        screen = await opened(chat)
        count = len(pieces(ANSWER))
        await chat.until(f"Token 3 of {count} 10.0%")
        assert "› 80.0% ' other'" in " ".join(chat.text.split())
        assert ANSWER in " ".join(chat.text.split())
        await chat.press("tab")
        await chat.until("Token 8 of")
        await chat.press("left")
        await chat.until("Token 7 of")
        await chat.press("home", "left")
        await chat.until("Token 1 of")
        await chat.press("end", "right")
        await chat.until(f"Token {count} of")
        await chat.press("tab")
        await chat.until("Token 3 of")  # behind the last unlikely one comes the first
        assert screen is chat.app.screen


@drive
async def test_enter_goes_on_from_a_candidate_as_a_branch(home: Path) -> None:
    async with open_chat(home, FakeBackend(lambda messages: ANSWER if len(messages) == 1 else " and on")) as chat:
        await chat.ask("count")
        await opened(chat)
        await chat.press("enter")
        before = "".join(pieces(ANSWER)[:2])
        await chat.until(lambda: chat.contents[-1] == f"{before} other and on")
        await chat.until("◂ 2 of 2 ▸")
        await chat.ready()
        assert chat.backend.asked[-1][-1].token_ids == (0, 1, 1000)
        await chat.press("shift+tab", "left")
        await chat.until(lambda: chat.contents[-1] == ANSWER)


@drive
async def test_the_token_that_was_written_is_no_branch_and_escape_changes_nothing(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER)) as chat:
        await chat.ask("count")
        await opened(chat)
        await chat.press("down", "enter")
        assert isinstance(chat.app.screen, TokenView)
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.contents == ["count", ANSWER]
        assert len(chat.backend.asked) == 1


@pytest.mark.parametrize("size", [(40, 10), (80, 24)])
@drive
async def test_a_token_far_below_is_scrolled_into_view(home: Path, size: tuple[int, int]) -> None:
    answer = prose(2000) + " 鲸鱼 " + prose(100)
    async with open_chat(home, FakeBackend(answer), size=size) as chat:
        await chat.ask("write")
        screen = await opened(chat)
        texts = [token.text for token in screen._answer.tokens]
        place = next(number for number, text in enumerate(texts) if "鲸" in text)
        screen._go(place)
        await chat.until("鲸鱼")
        for line in chat.text.splitlines():
            assert sum(2 if ord(char) > 0x2E7F else 1 for char in line) <= size[0]


@drive
async def test_unlikely_tokens_stand_out_without_colours(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=(110, 36)) as chat:
        await chat.ask("count")
        await opened(chat)
        styles: dict[str, Style] = {}
        for strip in chat.app.screen._compositor.render_strips():
            styles |= {segment.text.strip(): segment.style for segment in strip if segment.style}
        unlikely = pieces(ANSWER)[7].strip()
        assert styles[unlikely].underline
        assert styles[unlikely].bold


@drive
async def test_a_backend_that_cannot_tell_says_so(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER, scores=False)) as chat:
        await chat.ask("count")
        await chat.say("/tokens")
        await chat.until("probabilities need the model in this process")
        await chat.press("ctrl+n")
        await chat.say("/tokens")
        await chat.until("there is no answer yet")
