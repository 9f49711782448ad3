"""F3: choose, edit, add, remove and restore profiles. They are kept in config.toml."""

from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from dslite.app import sampling
from dslite.app.console import visible
from dslite.app.profiles import (
    Profile,
    all_profiles,
    check_name,
    default_profile,
    remove_profile,
    restore_profile,
    save_profile,
    set_default_profile,
    shipped_profiles,
)
from dslite.app.tui.dialogs import Field, LineDialog
from dslite.app.tui.text import inert, one_line
from dslite.model.errors import DsliteError

_HINTS = "Enter uses · Ctrl+E edits · Ctrl+A adds · Ctrl+S default · Ctrl+D removes · Ctrl+U restores · Esc closes"


class ProfilesScreen(ModalScreen[str | None]):
    """Ends with the name of the profile to use, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "dismiss(None)", "Close", show=False),
        Binding("ctrl+e", "edit", "Edit", show=False),
        Binding("ctrl+a", "add", "Add", show=False),
        Binding("ctrl+s", "default", "Default", show=False),
        Binding("ctrl+d,delete", "remove", "Remove", show=False),
        Binding("ctrl+u", "restore", "Restore", show=False),
    ]

    def __init__(self, current: str) -> None:
        super().__init__()
        self._current = current
        self._profiles: dict[str, Profile] = {}

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
        try:
            self._profiles = all_profiles()
            default = default_profile().name
        except DsliteError as error:
            self._say_error(error)
            return
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
        text = Text(inert(profile.system or "no system message"))
        if values:
            text.append("\n" + inert(" · ".join(values)), "dim")
        self.query_one("#profile-text", Static).update(text)

    @on(OptionList.OptionSelected)
    def _use(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_edit(self) -> None:
        if (profile := self._chosen) is not None:
            self.app.push_screen(ProfileEditor(profile), self._save)

    def action_add(self) -> None:
        def named(name: str | None) -> None:
            if name is None:
                return
            try:
                check_name(name)
            except DsliteError as error:
                self._say_error(error)
                return
            self.app.push_screen(ProfileEditor(self._profiles.get(name, Profile(name))), self._save)

        self.app.push_screen(LineDialog("Name of the new profile"), named)

    def _save(self, profile: Profile | None) -> None:
        if profile is not None:
            self._try(lambda: save_profile(profile), profile.name, "saved")

    def action_default(self) -> None:
        if (profile := self._chosen) is not None:
            self._try(lambda: set_default_profile(profile.name), profile.name, "is the default now")

    def action_remove(self) -> None:
        if (profile := self._chosen) is not None:
            self._try(lambda: remove_profile(profile.name), None, "removed; Ctrl+U brings shipped ones back")

    def action_restore(self) -> None:
        """The chosen one as it shipped; with none changed, those that were removed."""
        gone = [name for name in shipped_profiles() if name not in self._profiles]
        chosen = self._chosen
        for name in gone or ([chosen.name] if chosen and chosen.name in shipped_profiles() else []):
            self._try(lambda name=name: restore_profile(name), name, "is as it came with dslite")

    def _try(self, change: "object", highlight: str | None, said: str) -> None:
        try:
            change()  # type: ignore[operator]
        except DsliteError as error:
            self._say_error(error)
            return
        self._load(highlight)
        self._say(f"{highlight or 'profile'} {said}")

    def _say(self, text: str) -> None:
        self.query_one("#profiles-hints", Static).update(Text(inert(text)))

    def _say_error(self, error: DsliteError) -> None:
        self._say(f"{error.message}\n{error.remedy}" if error.remedy else error.message)


class ProfileEditor(ModalScreen[Profile | None]):
    """The fields of a profile. Ctrl+S saves, Esc leaves it as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", show=False, priority=True),
        Binding("escape", "dismiss(None)", "Leave it", show=False, priority=True),
    ]
    _FIELDS: ClassVar[tuple[str, ...]] = ("description", "model", "temperature", "top_p", "max_tokens")

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self._profile = profile

    def compose(self) -> ComposeResult:
        with Vertical(id="profile-editor", classes="panel"):
            yield Static(Text(f"Profile {inert(self._profile.name)}", "bold"))
            yield Static("System message")
            system = TextArea(visible(self._profile.system or ""), tab_behavior="focus", id="system")
            system.cursor_blink = False
            yield system
            known = self._profile.to_dict()
            for name in self._FIELDS:
                with Horizontal(classes="field"):
                    yield Static(name)
                    yield Field(inert(str(known.get(name, ""))), id=name)
            yield Static(Text("Ctrl+S saves · Tab next field · Esc leaves it as it was"), id="editor-hints")

    def action_save(self) -> None:
        try:
            self.dismiss(self._edited())
        except DsliteError as error:
            self.query_one("#editor-hints", Static).update(Text(inert(f"{error.message}\n{error.remedy}")))

    def _edited(self) -> Profile:
        """The profile as the fields say. Raises UsageError."""
        text = {name: self.query_one(f"#{name}", Input).value.strip() for name in self._FIELDS}
        values = dict(self._profile.sampling)
        for name in ("temperature", "top_p", "max_tokens"):
            values.pop(name, None)
            if text[name]:
                values |= sampling.chosen(**{name: _number(text[name])})
        system = self.query_one("#system", TextArea).text.strip()
        return replace(
            self._profile,
            description=text["description"],
            system=system or None,
            model=text["model"] or None,
            sampling=values,
            shipped=False,
        )


def _number(text: str) -> object:
    """A number where it is one; else the text, which the check refuses with its reason."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
