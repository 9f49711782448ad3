"""Makes the pictures of the README: the chat with the demo model's real answers, as SVG in assets/screens.

python -m support.screens    # in tests/
"""

import asyncio
import tempfile
import time
from pathlib import Path

from dslite.app.chat.model_loading import LocalModelLoader
from dslite.app.chat.settings import ChatSettings
from dslite.runtime.engine_options import EngineOptions
from support.chat import Chat, open_chat

PLACE = Path(__file__).parents[2] / "assets" / "screens"
OPTIONS = EngineOptions(device="cpu", dtype="bfloat16")  # as most have it: all experts in memory


async def ask(chat: Chat, text: str) -> None:
    """Send a message and wait for its answer."""
    await chat.ready()
    await chat.say(text)
    await chat.until(
        lambda: chat.controller.tree.leaf and chat.controller.reply is None and len(chat.contents) % 2 == 0
    )
    await chat.pilot.pause(0.2)


def keep(chat: Chat, name: str) -> None:
    (PLACE / f"{name}.svg").write_text(chat.app.export_screenshot(title="dslite chat"), encoding="utf-8")


async def main() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    settings = ChatSettings("demo", chosen={"temperature": 0.0})
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with open_chat(home, loader=LocalModelLoader(OPTIONS), settings=settings, size=(100, 30)) as chat:
            await ask(chat, "How do I save a profile?")
            await ask(chat, "Write quicksort in Python.")
            keep(chat, "chat")
            await chat.pilot.resize_terminal(110, 32)
            await chat.press("f2")
            await chat.until(lambda: "Memory" in chat.text)
            keep(chat, "inspector")
            await chat.press("f2", "ctrl+o")
            await chat.pilot.pause(0.5)
            keep(chat, "sessions")


if __name__ == "__main__":
    started = time.monotonic()
    asyncio.run(main())
    print(f"{time.monotonic() - started:.0f} s")
