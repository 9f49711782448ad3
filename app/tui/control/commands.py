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


class ScreenCommands(ChatCommands):
    """Commands that post messages to the application; `run` and `attempt` show errors."""

    def __init__(
        self,
        controller: ChatController,
        post: Callable[[Message], Any],
        chosen: Callable[[], Node | None],
        selected: Callable[[], str],
        find: Handler,
    ) -> None:
        """`find` opens the search at once: the keys that come with Ctrl+F are meant for it."""
        self._post = post
        own: dict[str, Handler] = {
            "help": lambda _: post(messages.ShowHelp()),
            "edit": lambda text: post(messages.EditInEditor(text)),
            "find": find,
            "inspect": lambda _: post(messages.ToggleInspector()),
            "theme": self._theme,
            "mouse": lambda _: post(messages.ToggleMouse()),
        }
        super().__init__(controller, own, chosen, selected)

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

    def _theme(self, name: str) -> None:
        names = [theme.name for theme in THEMES]
        if name and name not in names:
            raise UsageError(f"there is no theme {name}", f"choose one of {', '.join(names)}")
        self._post(messages.UseTheme(name))
