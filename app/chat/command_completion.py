"""What can follow in the input: slash commands, values of their arguments, and files behind @."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dslite.app.chat.slash_commands import COMMANDS, Command
from dslite.app.chat.state import ChatState
from dslite.app.settings.known_values import known_models, known_profiles
from dslite.app.settings.sampling import KEYS
from dslite.model.errors import DsliteError
from dslite.runtime.system.folders import expand_home

if TYPE_CHECKING:
    from concurrent.futures import Future

    from dslite.app.sessions.store import SessionStore

_MOST_CHATS = 200
_MOST_FILES = 100
Value = tuple[str, str]  # and what it is
Query = Callable[["SessionStore"], list[Value]]
_AT = re.compile(r"(?:^|(?<=\s))@([^\s@]*)$")


@dataclass(frozen=True)
class CommandCandidate:
    """`text` is the line up to the caret once it is taken; `label` is what is shown, with `help` beside it.

    `attach` is the path of a file that is attached then.
    """

    text: str
    label: str
    help: str = ""
    attach: str = ""


class CommandCompletion:
    """Candidates for an input. What takes long to read is read on the writer's thread, once, until `forget`.

    `changed` is called on that thread when more values are there; with `waits` candidates wait for them instead.
    """

    def __init__(self, chat: ChatState, changed: Callable[[], None] = lambda: None, *, waits: bool = False) -> None:
        self._chat, self._changed, self._waits = chat, changed, waits
        self._values: dict[str, list[Value]] = {}

    def forget(self) -> None:
        """Read values anew the next time: chats, profiles and models come and go."""
        self._values.clear()

    def candidates(self, text: str, *, is_alone: bool = True) -> list[CommandCandidate]:
        """What may become of a line up to the caret: of a file's name behind @, or of a command, which `is_alone`."""
        if (at := _AT.search(text)) is not None:
            return [*_files(text[: at.start()], at[1])]
        if not text.startswith("/") or not is_alone:
            return []
        word, space, argument = text.partition(" ")
        if not space:
            return [*self._commands(word.lower())]
        command = next((command for command in COMMANDS if word.lower() in command.words), None)
        if command is None or not command.hint:
            return []
        found = [*self._arguments(command, word, argument.lstrip())]
        return found or [CommandCandidate(text, f"{word} {command.hint}", command.help)]

    def _commands(self, typed: str) -> Iterator[CommandCandidate]:
        for command in COMMANDS:
            word = next((word for word in command.words if word.startswith(typed)), None)
            if word is not None:
                label = f"{word} {command.hint}".rstrip()
                yield CommandCandidate(f"{word} " if command.hint else word, label, command.help)

    def _arguments(self, command: Command, word: str, typed: str) -> Iterator[CommandCandidate]:
        if command.name in ("save", "file", "import"):
            yield from (CommandCandidate(f"{word} {path}", path) for path in paths(typed))
            return
        more = " " if command.name in ("set", "snippet") else ""
        wanted = typed.lower()
        for value, help in self._choices(command.name):
            in_help = command.name == "load" and wanted in help.lower()  # a chat is known by its title
            if (value.lower().startswith(wanted) or in_help) and value != typed:
                yield CommandCandidate(f"{word} {value}{more}", value, help)

    def _choices(self, name: str) -> Sequence[Value]:
        if name in self._values:
            return self._values[name]
        match name:
            case "load":
                return self._read(name, _chats)
            case "model":
                return self._read(name, lambda _: [*known_models()])
            case "set":
                found = [(key, "") for key in (*KEYS, "system")]
            case "profile" | "compare":
                found = _profiles()
            case "snippet":
                found = _snippets()
            case "theme":
                from dslite.app.settings.config_schema import THEMES

                found = [(theme, "") for theme in THEMES]
            case _:
                found = []
        self._values[name] = found
        return found

    def _read(self, name: str, query: Query) -> Sequence[Value]:
        self._values[name] = []

        def take(done: "Future[list[Value]]") -> None:
            if done.exception() is None:  # a store that cannot be read has no values to offer
                self._values[name] = done.result()
                self._changed()

        future = self._chat.writer.ask(query)
        future.add_done_callback(take)
        if self._waits:
            future.exception()
        return self._values[name]


def _files(before: str, typed: str) -> Iterator[CommandCandidate]:
    """Files that a name behind @ may mean. One that is taken is attached; its name stays in the sentence."""
    for path in paths(typed):
        if path.endswith("/"):
            yield CommandCandidate(f"{before}@{path}", path)
        else:
            yield CommandCandidate(before + path.rpartition("/")[2], path, attach=path)


def paths(typed: str) -> list[str]:
    """Files and folders that begin as typed, folders with a slash; hidden ones only where a dot was typed."""
    folder, _, start = typed.rpartition("/")
    shown = f"{folder}/" if "/" in typed else ""
    try:
        entries = sorted(Path(expand_home(shown or ".")).iterdir())
    except OSError:
        return []
    names = (entry.name + "/" * entry.is_dir() for entry in entries if entry.name.isprintable())
    found = (name for name in names if name.startswith(start) and (start.startswith(".") or not name.startswith(".")))
    return [shown + name for name in islice(found, _MOST_FILES)]


def _chats(store: "SessionStore") -> list[Value]:
    return [(chat.id, chat.title or "untitled") for chat in store.conversations(limit=_MOST_CHATS)]


def _profiles() -> list[Value]:
    try:
        return [*known_profiles()]
    except DsliteError:  # the command itself will say what is wrong
        return []


def _snippets() -> list[Value]:
    from dslite.app.settings.snippets import all_snippets

    try:
        return [(name, " ".join(text.split())) for name, text in all_snippets().items()]
    except DsliteError:
        return []
