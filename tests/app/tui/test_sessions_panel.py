"""Ctrl+O: the list of saved chats."""

import threading
import time
from datetime import date
from pathlib import Path

from support.chat import Chat, drive, open_chat

from dslite.app.sessions.store import SessionStore


@drive
async def test_enter_typed_before_the_search_has_answered_opens_what_it_finds(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ask("about whales")
        await chat.press("ctrl+n")
        await chat.ask("about sparrows")
        await chat.press("ctrl+o")
        await chat.until("search in titles")
        await chat.until(lambda: len(chat.app.screen.query_one("OptionList").options) == 3)
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
        await chat.until(lambda: len(chat.app.screen.query_one("OptionList").options) == 2)
        await chat.until("about whales")
        await chat.press("enter")
        await chat.until(f"{taken} of 32,768")


async def saved_chats(home: Path, *titles: str) -> None:
    """Saved chats, the last one the newest."""
    with SessionStore.open(home / "sessions.db") as store:
        for title in titles:
            talk = store.create(model="owner/DeepSeek-V2-Lite-Chat@abc", title=title)
            store.append(talk.id, "user", f"about {title}", parent=None)


def rows(chat: Chat) -> list[str]:
    """The lines of the list, heads of groups among them."""
    options = chat.app.screen.query_one("OptionList").options
    return [str(option.prompt).split("  ")[0].strip() for option in options]


@drive
async def test_chats_stand_in_groups_with_model_and_messages(home: Path) -> None:
    await saved_chats(home, "鲸鱼", "sparrows", "cods")
    now = time.time()
    with SessionStore.open(home / "sessions.db") as store, store.database.writing() as db:
        for title, days in (("sparrows", 1), ("鲸鱼", 400)):
            db.execute("UPDATE conversations SET updated = ? WHERE title = ?", (now - days * 86_400, title))
    async with open_chat(home, size=(110, 36)) as chat:
        await chat.press("ctrl+o")
        await chat.until("DeepSeek-V2-Lite-Chat · 1 message")
        month = f"{date.fromtimestamp(now - 400 * 86_400):%B %Y}"
        assert rows(chat) == ["Today", "cods", "Yesterday", "sparrows", month, "鲸鱼"]
        await chat.press("down", "down", "up", "enter")
        await chat.until(lambda: chat.contents == ["about sparrows"])


@drive
async def test_a_pinned_chat_stands_above_the_others_until_it_is_unpinned(home: Path) -> None:
    await saved_chats(home, "whales", "sparrows", "cods")
    async with open_chat(home, size=(110, 36)) as chat:
        await chat.press("ctrl+o")
        await chat.until(lambda: len(rows(chat)) == 4)
        await chat.press("down", "down", "ctrl+s")
        await chat.until(lambda: rows(chat) == ["Pinned", "whales", "Today", "cods", "sparrows"])
        await chat.press("escape", "ctrl+o")
        await chat.until(lambda: rows(chat)[:2] == ["Pinned", "whales"])
        await chat.press("ctrl+s")
        await chat.until(lambda: rows(chat) == ["Today", "cods", "sparrows", "whales"])


@drive
async def test_several_marked_chats_are_deleted_and_come_back_one_by_one(home: Path) -> None:
    await saved_chats(home, "whales", "sparrows", "cods")
    async with open_chat(home, size=(110, 36)) as chat:
        await chat.press("ctrl+o")
        await chat.until(lambda: len(rows(chat)) == 4)
        await chat.press("ctrl+@", "down", "ctrl+@")
        await chat.until("2 marked · Ctrl+D deletes them")
        assert rows(chat)[1:] == ["● cods", "● sparrows", "whales"]
        await chat.press("ctrl+d")
        await chat.until(lambda: rows(chat) == ["Today", "whales"])
        await chat.press("ctrl+underscore")
        await chat.until(lambda: rows(chat) == ["Today", "sparrows", "whales"])
        await chat.press("ctrl+underscore")
        await chat.until(lambda: len(rows(chat)) == 4)


@drive
async def test_a_hundred_chats_are_reached_page_by_page_below_the_pinned_ones(home: Path) -> None:
    await saved_chats(home, *(f"chat {number}" for number in range(120)))
    with SessionStore.open(home / "sessions.db") as store:
        store.pin(store.conversations(limit=None)[-1].id, pinned=True)
    async with open_chat(home, size=(110, 36)) as chat:
        await chat.press("ctrl+o")
        await chat.until(lambda: rows(chat)[:3] == ["Pinned", "chat 0", "Today"])
        for _ in range(14):
            await chat.press("pagedown")
            await chat.pilot.pause()
        await chat.until(lambda: len(rows(chat)) == 122)
        assert len(set(rows(chat))) == 122


@drive
async def test_chats_are_imported_from_inside(home: Path) -> None:
    async with open_chat(home, size=(110, 36)) as chat:
        await chat.ask("about whales")
        await chat.say(f"/save {home}/whales.json")
        await chat.until("saved as")
        await chat.say(f"/import {home}/whales.json")
        await chat.until("imported 1 chat: Ctrl+O")
        await chat.say(f"/import {home}/nothing.json")
        await chat.until("nothing.json cannot be read")
        await chat.press("ctrl+o")
        await chat.until(lambda: rows(chat) == ["Today", "about whales", "about whales"])


@drive
async def test_a_search_unmarks_what_it_hides(home: Path) -> None:
    await saved_chats(home, "whales", "sparrows", "cods")
    async with open_chat(home, size=(110, 36)) as chat:
        await chat.press("ctrl+o")
        await chat.until(lambda: len(rows(chat)) == 4)
        await chat.press("ctrl+@", "down", "ctrl+@")
        await chat.write("whales")
        await chat.until(lambda: rows(chat)[-1].startswith("whales") and len(rows(chat)) == 1)
        await chat.press("down", "ctrl+d")
        await chat.until("nothing found")
        await chat.press("ctrl+u")
        await chat.until(lambda: rows(chat) == ["Today", "cods", "sparrows"])
