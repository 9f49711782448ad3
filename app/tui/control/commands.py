"""Slash commands of the full screen: those of both front ends, and those that a screen alone has."""

from collections.abc import Callable
from typing import Any

from textual.message import Message

from dslite.app.chat.commands import ChatCommands, Handler
from dslite.app.chat.controller import ChatController
from dslite.app.chat.message_tree import Node
from dslite.app.tui import messages
from dslite.app.tui.style.themes import THEMES
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError


class ScreenCommands:
    """Runs commands by the names of COMMANDS; errors are shown."""

    def __init__(
        self, controller: ChatController, post: Callable[[Message], Any], chosen: Callable[[], Node | None]
    ) -> None:
        self._controller, self._post = controller, post
        self._shared = ChatCommands(controller, chosen)
        self.handlers: dict[str, Handler] = {
            **self._shared.handlers,
            "help": lambda _: self._send(messages.ShowHelp()),
            "edit": lambda text: self._send(messages.EditInEditor(text)),
            "load": self._load,
            "profile": self._profile,
            "inspect": lambda _: self._send(messages.ToggleInspector()),
            "theme": self._theme,
            "mouse": lambda _: self._send(messages.ToggleMouse()),
        }

    def run(self, name: str, argument: str = "") -> bool:
        """Do what a command says; False where it failed, which is shown."""
        return self.attempt(lambda: self.handlers[name](argument))

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do something that may raise DsliteError."""
        try:
            action()
        except DsliteError as error:
            self._controller.view.error(error)
            return False
        return True

    def _send(self, message: Message) -> None:
        self._post(message)

    def _load(self, prefix: str) -> None:
        if prefix:
            self._shared.load(prefix)
        else:
            self._send(messages.ShowSessions())

    def _profile(self, name: str) -> None:
        if name:
            self._controller.use_profile(name)
        else:
            self._send(messages.ShowProfiles())

    def _theme(self, name: str) -> None:
        names = [theme.name for theme in THEMES]
        if name and name not in names:
            raise UsageError(f"there is no theme {name}", f"choose one of {', '.join(names)}")
        self._send(messages.UseTheme(name))
