"""What a chat keeps of what was closed: nothing."""

import gc
import weakref
from pathlib import Path

from support.chat import Chat, drive, open_chat
from support.chat_texts import mixed
from textual.strip import Strip

from dslite.app.sessions.store import SessionStore


async def _open_and_close(chat: Chat, key: str) -> None:
    await chat.press(key)
    await chat.until(lambda: len(chat.app.screen_stack) > 1 and chat.app.screen.is_attached)
    await chat.pilot.pause()
    await chat.press("escape")
    await chat.until(lambda: len(chat.app.screen_stack) == 1)


def _lines() -> int:
    """Lines of widgets in memory."""
    gc.collect()
    return sum(type(thing) is Strip for thing in gc.get_objects())


@drive
async def test_panels_that_were_closed_keep_none_of_their_lines(home: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ready()
        for key in ("ctrl+o", "f1", "f3", "ctrl+o", "f1", "f3"):
            await _open_and_close(chat, key)
        before = _lines()
        for key in ("ctrl+o", "f1", "f3") * 3:
            await _open_and_close(chat, key)
        assert _lines() <= before + chat.app.size.height


@drive
async def test_a_conversation_that_was_left_is_gone(home: Path) -> None:
    with SessionStore.open(home / "sessions.db") as store:
        talk = store.create(model="demo", title="long")
        asked = store.append(talk.id, "user", "question", parent=None)
        store.append(talk.id, "assistant", mixed(2000), parent=asked.id, finish_reason="stop")
    async with open_chat(home, resume=lambda _: talk.id) as chat:
        await chat.until(lambda: len(chat.contents) == 2)
        left = weakref.ref(chat.controller.tree)
        drawn = weakref.ref(chat.transcript.items[-1])
        await chat.press("ctrl+n")
        await chat.until(lambda: not chat.contents)
        gc.collect()
        assert left() is None
        assert drawn() is None
