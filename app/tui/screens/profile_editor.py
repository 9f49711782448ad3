"""The fields of a profile, on a screen of their own."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Input, Static, TextArea

from dslite.app.settings import sampling
from dslite.app.settings.profiles import Profile
from dslite.app.terminal.console import error_text, printable
from dslite.app.tui.screens.dialogs import Area, Field
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.transcript.sanitize import inert
from dslite.model.errors import DsliteError

_NUMBERS = tuple(key for key in sampling.KEYS if key not in (*sampling.LISTS, *sampling.CONSTRAINTS))
_FIELDS = ("description", "model", *_NUMBERS)
_HINTS = "Ctrl+S saves · Tab next field · Esc leaves it as it was"
_UNSAVED = "what you changed is not saved: Ctrl+S saves it, Esc again leaves it"


class ProfileEditor(ModalPanel[str | None]):
    """Returns the name of the profile once it is saved, or None. Values that cannot be saved stay in their fields."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Without priority: text that was typed just before must reach its field first.
        Binding("ctrl+s", "save", "Save", show=False),
        Binding("escape", "leave", "Leave it", show=False),
    ]

    def __init__(self, profile: Profile, save: Callable[[Profile], None]) -> None:
        super().__init__()
        self._profile = profile
        self._save = save
        self._warned = False

    def compose(self) -> ComposeResult:
        with Vertical(id="profile-editor", classes="panel"):
            yield Static(Text(f"Profile {inert(self._profile.name)}", "bold"))
            yield Static("System message")
            with VerticalScroll(can_focus=False):
                system = Area(printable(self._profile.system or ""), tab_behavior="focus", id="system")
                system.cursor_blink = False
                yield system
                known = self._profile.to_dict()
                for name in _FIELDS:
                    with Horizontal(classes="field"):
                        yield Static(name)
                        yield Field(inert(str(known.get(name, ""))), placeholder="not set", id=name)
            yield Static(Text(_HINTS), id="editor-hints")

    def on_mount(self) -> None:
        self.query_one("#system").focus()
        self._before = self._values()

    def _values(self) -> list[str]:
        return [self.query_one("#system", TextArea).text, *(self._field(name) for name in _FIELDS)]

    def _field(self, name: str) -> str:
        return self.query_one(f"#{name}", Input).value.strip()

    def action_leave(self) -> None:
        """Leave; where changes would be lost, only at the second Esc."""
        if self._warned or self._values() == self._before:
            self.dismiss(None)
        else:
            self._warned = True
            self._say(_UNSAVED)

    def action_save(self) -> None:
        try:
            self._save(self._edited())
        except DsliteError as error:
            self._say(error_text(error))
        else:
            self.dismiss(self._profile.name)

    def _say(self, text: str) -> None:
        self.query_one("#editor-hints", Static).update(Text(inert(text)))

    def _edited(self) -> Profile:
        """The profile with the values of the fields. Raises UsageError."""
        values = {key: value for key, value in self._profile.sampling.items() if key not in _NUMBERS}
        for name in _NUMBERS:
            if text := self._field(name):
                values |= sampling.chosen(**{name: _number(text)})
        return replace(
            self._profile,
            description=self._field("description"),
            system=self.query_one("#system", TextArea).text.strip() or None,
            model=self._field("model") or None,
            sampling=values,
            shipped=False,
        )


def _number(text: str) -> object:
    """The number that a text means; else the text, which the check refuses with a reason."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
