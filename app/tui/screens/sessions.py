"""Ctrl+O: saved chats at the left: find, open, rename, delete, undo the deletion."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from dslite.app.chat.controller import ChatController
from dslite.app.sessions.export import local_time
from dslite.app.tui.screens.dialogs import Field, LineDialog
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.transcript.items import short_name
from dslite.app.tui.transcript.sanitize import one_line

if TYPE_CHECKING:
    from dslite.app.sessions.store import Conversation, Hit, SessionStore

_PAGE = 50


@dataclass(frozen=True)
class SessionChoice:
    """The chat to open. Of a search: its words, and the id of the message that has them."""

    id: str
    words: str = ""
    message: int | None = None


_FEW_HINTS = "Enter opens · Ctrl+T renames · Ctrl+D deletes · Ctrl+_ undoes · Esc closes"
_LOW = 20  # lines under which a chat takes one, and groups have no heads
_HINTS = "Enter opens · Ctrl+T renames · Ctrl+S pins · Ctrl+Space marks · Ctrl+D deletes · Ctrl+_ undoes · Esc closes"


class SessionsPanel(ModalPanel[SessionChoice | None]):
    """Returns the chat to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+o", "dismiss(None)", "Close", show=False, priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("pagedown", "move(10)", "Page down", show=False, priority=True),
        Binding("pageup", "move(-10)", "Page up", show=False, priority=True),
        Binding("ctrl+t", "rename", "Rename", show=False, priority=True),
        Binding("ctrl+s", "pin", "Pin", show=False, priority=True),
        Binding("ctrl+@,ctrl+space", "mark", "Mark", show=False, priority=True),
        Binding("ctrl+d", "delete", "Delete", show=False, priority=True),
        Binding("ctrl+underscore", "undo", "Undo", show=False, priority=True),
    ]

    def __init__(self, controller: ChatController) -> None:
        super().__init__()
        self._controller = controller
        self._last: Conversation | None = None  # of the pages that are shown
        self._rows: dict[str, Conversation | Hit] = {}  # that are shown, by their ids
        self._marked: dict[str, None] = {}  # ids of chats to delete, in the order in which they were marked
        self._group = ""  # under which the last chat stands
        self._query_number = 0  # of the newest query; results of older ones are dropped
        self._shown_number = 0  # of the query whose result is shown
        self._opens_first = False  # Enter was pressed before the result of the search came

    def compose(self) -> ComposeResult:
        with Vertical(id="sessions", classes="panel"):
            yield Static(Text("Chats", "bold"))
            yield Field(placeholder="search in titles and messages")
            yield OptionList()
            yield Static(Text(self._hints), id="sessions-hints")

    def on_mount(self) -> None:
        self._load()

    @property
    def _list(self) -> OptionList:
        return self.query_one(OptionList)

    @property
    def _chosen(self) -> str | None:
        place = self._list.highlighted
        return self._list.get_option_at_index(place).id if place is not None and self._list.option_count else None

    # The list.

    def _load(self) -> None:
        """Show the newest chats, or those that contain the words of the search."""
        words = self.query_one(Input).value
        self._query_number += 1
        number = self._query_number

        def query(store: "SessionStore") -> "Sequence[Conversation] | Sequence[Hit]":
            if words.strip():
                return store.search(words, limit=_PAGE)
            return [*store.conversations(pinned=True, limit=_PAGE), *store.conversations(pinned=False, limit=_PAGE)]

        def show(found: "Sequence[Conversation] | Sequence[Hit]") -> None:
            if number == self._query_number and self.query(OptionList):
                self._shown_number = number
                self._show(found, searching=bool(words.strip()))
                if self._opens_first:
                    self._open()

        self._controller.saved.lookup(query, show)

    def _show(self, found: "Sequence[Conversation] | Sequence[Hit]", *, searching: bool) -> None:
        from dslite.app.sessions.store import Conversation

        kept = self._chosen
        self._list.clear_options()
        self._rows.clear()
        self._group = ""
        self._last = found[-1] if found and isinstance(found[-1], Conversation) and not searching else None
        self._add(found)
        self._marked = {identity: None for identity in self._marked if identity in self._rows}  # what is shown
        if not found:
            none = "nothing found" if searching else "no chat is saved yet"
            self._list.add_option(Option(Text(none, "dim"), disabled=True))
        else:
            self._highlight(kept if kept in self._rows else found[0].id)

    def _add(self, found: "Sequence[Conversation] | Sequence[Hit]") -> None:
        for row in found:
            self._rows[row.id] = row
            group = "" if self._is_low else _group(row)
            if group != self._group:
                self._group = group
                self._list.add_option(Option(Text(group, "bold dim"), disabled=True))
            self._list.add_option(Option(self._drawn(row), id=row.id))

    def _drawn(self, row: "Conversation | Hit") -> Text:
        width = max(self._list.size.width - 4, 12)
        return _row(row, width, marked=row.id in self._marked, short=self._is_low)

    @property
    def _hints(self) -> str:
        return _FEW_HINTS if self._is_low else _HINTS

    @property
    def _is_low(self) -> bool:
        return self.app.size.height < _LOW

    def _highlight(self, identity: str) -> None:
        self._list.highlighted = self._list.get_option_index(identity)

    @on(OptionList.OptionHighlighted)
    def _near_end(self, event: OptionList.OptionHighlighted) -> None:
        """Load the next page when the last row of the list is reached."""
        if self._last is None or self._last.pinned or event.option_index < self._list.option_count - 1:
            return
        before, self._last = self._last, None

        def show(found: "Sequence[Conversation]") -> None:
            if self.is_attached and found:
                self._add(found)
                self._last = found[-1]

        self._controller.saved.lookup(lambda store: store.conversations(limit=_PAGE, before=before, pinned=False), show)

    @on(Input.Changed)
    def _search(self) -> None:
        self._list.highlighted = None
        self._opens_first = False
        self._load()

    # Actions.

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _open(self) -> None:
        self._opens_first = self._shown_number != self._query_number
        if self._chosen and not self._opens_first:
            self.dismiss(_choice(self._rows[self._chosen], self.query_one(Input).value))

    def action_move(self, step: int) -> None:
        ids = list(self._rows)
        if self._chosen in ids:
            self._highlight(ids[min(max(ids.index(self._chosen) + step, 0), len(ids) - 1)])

    def action_rename(self) -> None:
        identity = self._chosen
        if identity is None:
            return

        def renamed(title: str | None) -> None:
            if title and title.strip():
                self._controller.saved.rename(identity, title.strip(), self._reload)

        self.app.push_screen(LineDialog("Title", self._rows[identity].title), renamed)

    def action_pin(self) -> None:
        """Put the chat above the others, or back among them."""
        row = self._rows.get(self._chosen or "")
        pinned = getattr(row, "pinned", None)
        if row is not None and pinned is not None:  # a search does not know it
            self._controller.saved.lookup(lambda store: store.pin(row.id, pinned=not pinned), lambda _: self._reload())

    def action_mark(self) -> None:
        """Mark the chat, or unmark it: Ctrl+D deletes all that are marked."""
        row = self._rows.get(self._chosen or "")
        if row is None:
            return
        if row.id in self._marked:
            del self._marked[row.id]
        else:
            self._marked[row.id] = None
        self._list.replace_option_prompt(row.id, self._drawn(row))
        self._say(f"{len(self._marked)} marked · Ctrl+D deletes them" if self._marked else self._hints)

    def action_delete(self) -> None:
        """Delete the marked chats, or the chosen one."""
        identities = list(self._marked) or [identity for identity in [self._chosen] if identity is not None]
        if not identities:
            return
        titles = [one_line(self._rows[identity].title, 40) for identity in identities]
        self._marked.clear()
        left = len(identities)

        def deleted() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._reload()
                what = f"“{titles[0]}” · Ctrl+_ takes it" if len(titles) == 1 else f"{len(titles)} · Ctrl+_ takes each"
                self._say(f"deleted {what} back")

        for identity, title in zip(identities, titles, strict=True):
            self._controller.delete_chat(identity, title, deleted)

    def action_undo(self) -> None:
        def restored(title: str) -> None:
            self._reload()
            self._say(f"“{title}” is back")

        if not self._controller.saved.restore(restored):
            self._say("nothing to undo: no chat was deleted since dslite was started")

    def _reload(self) -> None:
        if self.query(OptionList):
            self._load()

    def _say(self, text: str) -> None:
        if not self.query("#sessions-hints"):
            return
        self.query_one("#sessions-hints", Static).update(Text(text))


def _choice(row: "Conversation | Hit", words: str) -> SessionChoice:
    message = getattr(row, "message", None)
    return SessionChoice(row.id, words.strip() if message is not None else "", message)


def _group(row: "Conversation | Hit") -> str:
    """The head that a chat stands under: pinned ones, then by days, then by months. None for what a search found."""
    if getattr(row, "messages", None) is None:
        return ""
    if getattr(row, "pinned", False):
        return "Pinned"
    today, day = date.today(), date.fromtimestamp(row.updated)
    ago = (today - day).days
    if ago < 2:
        return "Yesterday" if ago == 1 else "Today"
    return "This week" if ago < 7 else f"{day:%B %Y}"


def _row(row: "Conversation | Hit", width: int, *, marked: bool, short: bool) -> Text:
    """Title and age; below, model and number of messages, or the text that a search has found."""
    age = _age(row.updated)
    title = Text(("● " if marked else "") + (one_line(row.title) or "untitled"), end="")
    title.truncate(max(width - cell_len(age) - 1, 4), overflow="ellipsis")
    line = Text.assemble(title, " " * max(width - cell_len(title.plain) - cell_len(age), 1), (age, "dim"))
    snippet = getattr(row, "snippet", "")
    if snippet and snippet != row.title:
        line.append_text(_snippet(snippet, getattr(row, "marks", ()), width))
    elif (messages := getattr(row, "messages", None)) is not None and not short:
        model = short_name(str(getattr(row, "model", "")))
        line.append(f"\n  {one_line(model, width - 16)} · {messages} message{'s' * (messages != 1)}", "dim")
    return line


def _snippet(snippet: str, marks: Sequence[tuple[int, int]], width: int) -> Text:
    """The text around the first found word, on one line."""
    start = max(marks[0][0] - width // 3, 0) if marks else 0
    end = start + width - 2
    text = Text("\n  ", style="dim", end="")
    place = start
    for first, last in marks:
        if last <= end:
            text.append(_flat(snippet[place:first]))
            text.append(_flat(snippet[first:last]), Style(bold=True, dim=False))
            place = last
    text.append(_flat(snippet[place:end]))
    text.truncate(width + 3, overflow="ellipsis")
    return text


def _flat(text: str) -> str:
    from dslite.app.tui.transcript.sanitize import inert

    return inert(text).replace("\n", " ")


def _age(updated: float) -> str:
    """How long ago: minutes, hours, then the date."""
    minutes = max(int((time.time() - updated) // 60), 0)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h"
    return local_time(updated)[:10]
