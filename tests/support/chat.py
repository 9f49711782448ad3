"""The chat application under a pilot: no terminal, a fake model, files of its own. Tests wait for conditions."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.launch import ChatConfig, ChatLaunch
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions.store import SessionStore
from dslite.app.tui.app import ChatApp
from dslite.runtime.downloads.hub import parse_model
from support.fake_engine import FakeBackend, FakeLoader

PATIENCE_S = 30.0  # a loaded machine is slow, not broken


def drive(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Chat:
    """One running application."""

    def __init__(self, app: ChatApp, pilot: Pilot[Any], backend: FakeBackend) -> None:
        self.app = app
        self.pilot = pilot
        self.backend = backend

    async def until(self, condition: Callable[[], object] | str) -> None:
        """Wait for a condition, or for a text on screen, wherever its lines are broken."""
        holds = (lambda: condition in " ".join(self.text.split())) if isinstance(condition, str) else condition
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"not reached: {condition}\n{self.text}")
            await self.pilot.pause(0.01)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def write(self, text: str) -> None:
        """Type a text into whatever has the focus."""
        for char in text:
            await self.pilot.press({" ": "space", "\n": "ctrl+j"}.get(char, char))

    async def say(self, text: str) -> None:
        """Send a message or a command, without waiting for what it does."""
        self.prompt.put(text)
        self.prompt.focus()
        await self.pilot.press("enter")

    async def ask(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        before = len(self.backend.asked)
        await self.say(text)
        await self.until(lambda: len(self.backend.asked) > before and self.controller.reply is None)

    async def ready(self) -> None:
        await self.until(lambda: self.controller.status.idle)

    @property
    def controller(self) -> Any:
        return self.app.controller

    @property
    def prompt(self) -> Any:
        return self.app.chat.prompt

    @property
    def transcript(self) -> Any:
        return self.app.chat.transcript

    @property
    def text(self) -> str:
        """What is on screen."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    @property
    def status(self) -> str:
        return str(self.app.chat.status_line.text)

    @property
    def contents(self) -> list[str]:
        """The messages of the branch on screen."""
        return [node.content for node in self.controller.tree.path()]


@asynccontextmanager
async def open_chat(
    home: Path,
    backend: FakeBackend | None = None,
    *,
    size: tuple[int, int] = (100, 30),
    model: str = "demo",
    saving: bool = True,
    loader: Any = None,
    settings: ChatSettings | None = None,
    resume: Callable[[SessionStore], str | None] | None = None,
    config: ChatConfig | None = None,
    **more: Any,
) -> AsyncIterator[Chat]:
    """The application with its conversations in `home`."""
    backend = backend or FakeBackend()
    writer = ConversationWriter(lambda: SessionStore.open(home / "sessions.db"), saving=saving)
    start = ChatLaunch(
        ref=parse_model(model),
        settings=settings or ChatSettings(model),
        loader=loader or FakeLoader(backend),
        writer=writer,
        resume=resume,
        config=config or ChatConfig(),
        **more,
    )
    app = ChatApp(start)
    try:
        async with app.run_test(size=size) as pilot:
            chat = Chat(app, pilot, backend)
            await chat.until(lambda: app.chat.is_attached and app.chat.transcript.items)
            yield chat
    finally:
        app.worker.close()
        writer.close()
