"""Ctrl+O: the list of saved chats."""

import threading
from pathlib import Path

from support.chat import drive, open_chat


@drive
async def test_enter_typed_before_the_search_has_answered_opens_what_it_finds(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        await chat.press("ctrl+n")
        await chat.ask("about sparrows")
        await chat.press("ctrl+o")
        await chat.until("search in titles")
        await chat.until(lambda: len(chat.app.screen.query_one("OptionList").options) == 2)
        hold = threading.Event()
        chat.controller.writer.ask(lambda _: hold.wait())
        await chat.write("whal")
        await chat.press("enter")
        assert len(chat.app.screen_stack) == 2
        hold.set()
        await chat.until(lambda: chat.contents and chat.contents[0] == "about whales")


@drive
async def test_the_smallest_screen_shows_search_chats_and_keys(home: Path) -> None:
    async with open_chat(home, size=(40, 10)) as chat:
        await chat.ask("about whales")
        await chat.press("ctrl+n")
        await chat.ask("about sparrows")
        await chat.press("ctrl+o")
        await chat.until("search in titles")
        await chat.until("about sparrows")
        await chat.until("about whales")
        await chat.until("Enter opens")


@drive
async def test_an_opened_chat_says_how_much_of_the_context_it_takes(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        taken = chat.controller.status.used
        assert taken > 0
        await chat.press("ctrl+n")
        assert chat.controller.status.used == 0
        await chat.press("ctrl+o")
        await chat.until(lambda: len(chat.app.screen.query_one("OptionList").options) == 1)
        await chat.until("about whales")
        await chat.press("enter")
        await chat.until(f"{taken} of 32,768")
