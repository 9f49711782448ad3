"""F3: choose, edit, add, rename, remove and restore profiles. They are kept in config.toml."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from dslite.app.settings.profile_toml import profile_text, save_profile_text
from dslite.app.settings.profiles import (
    Profile,
    all_profiles,
    check_name,
    default_profile,
    remove_profile,
    rename_profile,
    restore_profile,
    save_profile,
    set_default_profile,
    shipped_profiles,
)
from dslite.app.terminal.console import error_text
from dslite.app.tui.screens.dialogs import LineDialog
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.screens.profile_editor import ProfileEditor
from dslite.app.tui.transcript.sanitize import inert, one_line
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError

_HINTS = (
    "Enter uses · Ctrl+E edits · Ctrl+A adds · Ctrl+T renames · Ctrl+S default · Ctrl+D removes · Ctrl+U restores"
    " · Ctrl+_ undoes · Esc closes"
)


class ProfilesScreen(ModalPanel[str | None]):
    """Returns the name of the profile to use, or None. The one in use is returned where it was changed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "close", "Close", show=False),
        Binding("ctrl+e", "edit", "Edit", show=False),
        Binding("ctrl+a", "add", "Add", show=False),
        Binding("ctrl+t", "rename", "Rename", show=False),
        Binding("ctrl+s", "default", "Default", show=False),
        Binding("ctrl+d,delete", "remove", "Remove", show=False),
        Binding("ctrl+u", "restore", "Restore", show=False),
        Binding("ctrl+underscore", "undo", "Undo", show=False),
    ]

    def __init__(self, current: str, removed: list[tuple[str, str]]) -> None:
        """`removed` has names and texts of the profiles that were removed since dslite was started, for undo."""
        super().__init__()
        self._current = current
        self._changed = False  # the current one
        self._profiles: dict[str, Profile] = {}
        self._removed = removed

    def compose(self) -> ComposeResult:
        with Vertical(id="profiles", classes="panel"):
            yield Static(Text("Profiles", "bold"))
            yield OptionList()
            yield Static(id="profile-text")
            yield Static(Text(_HINTS), id="profiles-hints")

    def on_mount(self) -> None:
        self._load(self._current)
        self.query_one(OptionList).focus()

    def _load(self, highlight: str | None = None) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        self._profiles, default = {}, None
        try:
            self._profiles = all_profiles()
            default = default_profile().name
        except DsliteError as error:  # of the default alone: the list helps to choose another
            self._say_error(error)
        for name, profile in self._profiles.items():
            marks = "".join((" · in use" if name == self._current else "", " · default" if name == default else ""))
            line = Text.assemble((one_line(name), "bold"), f"  {one_line(profile.description)}", (marks, "dim"))
            options.add_option(Option(line, id=name))
        names = list(self._profiles)
        options.highlighted = names.index(highlight) if highlight in names else 0 if names else None

    @property
    def _chosen(self) -> Profile | None:
        options = self.query_one(OptionList)
        place = options.highlighted
        return self._profiles.get(options.get_option_at_index(place).id or "") if place is not None else None

    @on(OptionList.OptionHighlighted)
    def _describe(self) -> None:
        profile = self._chosen
        if profile is None:
            return
        values = [f"{key} {value}" for key, value in profile.sampling.items()]
        values += [f"model {profile.model}"] if profile.model else []
        values += [f"weights {profile.weights}"] if profile.weights else []
        text = Text(inert(profile.system or "no system message"))
        if values:
            text.append("\n" + inert(" · ".join(values)), "dim")
        self.query_one("#profile-text", Static).update(text)

    @on(OptionList.OptionSelected)
    def _use(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_close(self) -> None:
        self.dismiss(self._current if self._changed and self._current in self._profiles else None)

    def action_edit(self) -> None:
        if (profile := self._chosen) is not None:
            self._edit(profile)

    def _edit(self, profile: Profile) -> None:
        def saved(name: str | None) -> None:
            if name is not None:
                self._changed |= name == self._current
                self._load(name)
                self._say(f"{name} saved")

        self.app.push_screen(ProfileEditor(profile, save_profile), saved)

    def action_add(self) -> None:
        def named(name: str) -> None:
            check_name(name)
            if name in all_profiles():
                raise UsageError(f"there is a profile {name!r} already", "choose another name, or leave and edit it")
            self._edit(Profile(name))

        self._ask_name("Name of the new profile", "", named)

    def action_rename(self) -> None:
        profile = self._chosen
        if profile is None:
            return
        old = profile.name

        def named(new: str) -> None:
            if new == old:
                return
            rename_profile(old, new)
            if old == self._current:
                self._current, self._changed = new, True
            self._load(new)
            self._say(f"{old} is called {new} now")

        self._ask_name("Name", old, named)

    def _ask_name(self, question: str, text: str, then: Callable[[str], None], problem: str = "") -> None:
        """Ask for a name until `then` accepts one."""

        def submitted(name: str | None) -> None:
            if name is None:
                return
            try:
                then(name.strip())
            except DsliteError as error:
                self._ask_name(question, name, then, error_text(error))

        self.app.push_screen(LineDialog(question, text, problem=problem), submitted)

    def action_default(self) -> None:
        if (profile := self._chosen) is not None:
            self._try(lambda: set_default_profile(profile.name), profile.name, f"{profile.name} is the default now")

    def action_remove(self) -> None:
        profile = self._chosen
        if profile is None:
            return

        def remove() -> None:
            text = profile_text(profile.name)
            remove_profile(profile.name)
            self._removed.append((profile.name, "" if profile.shipped else text))

        self._try(remove, None, f"{profile.name} removed; Ctrl+U brings it back")

    def action_restore(self) -> None:
        """What was removed here, the last first; then shipped ones that are gone; else the chosen one as it shipped."""
        gone = [name for name in shipped_profiles() if name not in self._profiles]
        chosen = self._chosen
        if self._removed:
            name, text = self._removed[-1]
            restore = partial(save_profile_text, name, text) if text else partial(restore_profile, name)
            if self._try(restore, name, f"{name} is back"):
                self._removed.pop()
        elif gone:
            self._try(lambda: [restore_profile(name) for name in gone], gone[0], f"{', '.join(gone)}: back as shipped")
        elif chosen is not None and chosen.name in shipped_profiles():
            name = chosen.name
            self._changed |= name == self._current
            self._try(lambda: restore_profile(name), name, f"{name} is as it came with dslite")
        else:
            self._say("nothing to restore: this profile is your own")

    def action_undo(self) -> None:
        """Take back the last removal."""
        if self._removed:
            self.action_restore()
        else:
            self._say("nothing to undo: no profile was removed since dslite was started")

    def _try(self, change: Callable[[], object], highlight: str | None, said: str) -> bool:
        try:
            change()
        except DsliteError as error:
            self._say_error(error)
            return False
        self._load(highlight)
        self._say(said)
        return True

    def _say(self, text: str) -> None:
        self.query_one("#profiles-hints", Static).update(Text(inert(text)))

    def _say_error(self, error: DsliteError) -> None:
        self._say(error_text(error))
