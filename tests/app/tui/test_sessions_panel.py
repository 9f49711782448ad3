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
        chat.conductor.recorder.ask(lambda _: hold.wait())
        await chat.write("whal")
        await chat.press("enter")
        assert len(chat.app.screen_stack) == 2
        hold.set()
        await chat.until(lambda: chat.contents and chat.contents[0] == "about whales")
