"""The chat's screen: its widgets, and where their messages go."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Rule, Static

from dslite.app.chat import slash_commands
from dslite.app.chat.slash_commands import COMMANDS
from dslite.app.terminal import clipboard
from dslite.app.tui.control.commands import SlashCommands
from dslite.app.tui.style import keys
from dslite.app.tui.transcript.items import short_name
from dslite.app.tui.transcript.sanitize import one_line
from dslite.app.tui.transcript.transcript import Transcript
from dslite.app.tui.widgets.prompt import Prompt
from dslite.app.tui.widgets.status import StatusLine, TitleLine
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef

if TYPE_CHECKING:
    from dslite.app.tui.app import ChatApp
    from dslite.app.tui.control.controller import ChatController

T = TypeVar("T")
_BY_NAME = {command.name: command for command in COMMANDS}
FLASH_S = 4.0
NARROW = 80  # columns under which a panel takes the whole screen
LOW = 14  # lines under which the title goes


class ChatScreen(Screen[None]):
    """The conversation, the prompt, the line of facts; the inspector when it is asked for."""

    BINDINGS: ClassVar[list[BindingType]] = [*keys.bindings()]
    AUTO_FOCUS = "#prompt"

    app: "ChatApp"
    conductor: "ChatController"

    def __init__(self, lead: "Callable[[ChatScreen], ChatController]") -> None:
        super().__init__()
        self.conductor = lead(self)
        self.deeds = SlashCommands(self, self.conductor)
        self._wants_quit = False
        self._flash_timer: Any = None

    def compose(self) -> ComposeResult:
        with Horizontal(id="body"), Vertical(id="conversation"):
            yield TitleLine(id="title")
            yield Rule(classes="rule", id="title-rule")
            yield Transcript(id="transcript")
            yield Rule(classes="rule")
            with Horizontal(id="ask"):
                yield Static("› ", classes="mark")
                yield Prompt(id="prompt")
            yield Rule(classes="rule")
        yield StatusLine(id="status")

    def on_mount(self) -> None:
        self.transcript = self.query_one("#transcript", Transcript)
        self.prompt = self.query_one("#prompt", Prompt)
        self.status_line = self.query_one("#status", StatusLine)
        self.title_line = self.query_one("#title", TitleLine)
        self.conductor.show()

    def on_resize(self, event: events.Resize) -> None:
        self.set_class(event.size.width < NARROW, "narrow")
        self.set_class(event.size.height < LOW, "low")
        self.call_after_refresh(self.refresh_lines)

    # Lines that say how things stand.

    def refresh_lines(self) -> None:
        """Draw the title and the status again where they changed."""
        if not self.is_attached:
            return
        conductor = self.conductor
        self.status_line.show(conductor.status)
        title = one_line(conductor.dialogue.title) or "New chat"
        model = one_line(short_name(conductor.ref.name))
        self.title_line.show(title, f"{model} · profile {one_line(conductor.settings.profile.name)}")
        self.app.inspector_tick()

    def flash(self, text: str) -> None:
        """Say something in the status line for a moment."""
        status = self.conductor.status
        status.notice = one_line(text)
        if self._flash_timer is not None:
            self._flash_timer.stop()
        self._flash_timer = self.set_timer(FLASH_S, self._end_flash)
        self.refresh_lines()

    def _end_flash(self) -> None:
        self.conductor.status.notice = ""
        self._wants_quit = False
        self.refresh_lines()

    # The prompt.

    @on(Prompt.Submitted)
    def _submitted(self, event: Prompt.Submitted) -> None:
        editing = self.conductor.editing is not None
        try:
            command = None if editing else slash_commands.parse(event.text)
        except DsliteError as error:
            self.conductor.say_error(error)
            if not self.prompt.text:
                self.prompt.put(event.text)
            return
        if command is None:
            self.conductor.send(event.text)
        else:
            self.deeds.run(*command)

    @on(Prompt.Wants)
    def _wanted(self, event: Prompt.Wants) -> None:
        match event.what:
            case "quit":
                self.quit()
            case "edit":
                self._run(self.conductor.edit)
            case "messages":
                self.transcript.focus()
            case "scroll":
                self.transcript.scroll_relative(y=event.amount * max(self.transcript.size.height - 2, 1), animate=False)

    @on(Transcript.Walk)
    def _walk(self, event: Transcript.Walk) -> None:
        self.conductor.walk(event.key, event.step)

    @on(Transcript.Leave)
    def _leave(self, event: Transcript.Leave) -> None:
        self.prompt.focus()
        if event.text:
            self.prompt.insert(event.text)

    # Actions of keys.

    def action_command(self, name: str) -> None:
        self.deeds.run(_BY_NAME[name])

    def action_stop(self) -> None:
        if self.conductor.stop():
            return
        if self.conductor.editing is not None:
            self.conductor.editing = None
            self.prompt.put("")
            self._end_flash()
        elif self.get_selected_text():
            self.clear_selection()
        elif self.app.inspector is not None and self.has_class("narrow"):
            self.toggle_inspector()
        self.prompt.focus()

    def action_interrupt(self) -> None:
        """Ctrl+C: a selection is copied; an answer stops; input is cleared; then a hint, and the second one quits."""
        if selected := self.get_selected_text() or self.prompt.selected_text:
            self.copy_text(selected, "the selection")
        elif self.conductor.stop():
            return
        elif self.prompt.text:
            self.conductor.editing = None
            self.prompt.put("")
        else:
            self.quits_now()

    def quits_now(self) -> bool:
        """Asked to quit: the first time a hint; the second one, soon after, quits."""
        if self._wants_quit:
            self.quit()
            return True
        self.flash("Ctrl+C again quits; so do Ctrl+D and /quit")
        self._wants_quit = True
        return False

    def action_edit_chosen(self) -> None:
        chosen = self.transcript.chosen
        node = self.conductor.dialogue.node(chosen.key) if chosen else None
        self._run(partial(self.conductor.edit, node))

    def action_profiles(self) -> None:
        self.show_profiles()

    def _run(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except DsliteError as error:
            self.conductor.say_error(error)

    # What commands ask of the screen.

    def copy_text(self, text: str, what: str) -> None:
        self.run_worker(self._copy(text, what), group="copy", exclusive=True)

    async def _copy(self, text: str, what: str) -> None:
        if await asyncio.to_thread(clipboard.copy_natively, text):
            self.flash(f"copied {what} to the clipboard")
        else:
            self.app.copy_to_clipboard(text)
            doubt = (
                "it may be too long: many take 74 kB"
                if clipboard.is_long_for_terminals(text)
                else "not every terminal takes it"
            )
            self.flash(f"sent {what} to the terminal's clipboard (OSC 52); {doubt}")

    def app_suspended(self, work: Callable[[], T]) -> T | None:
        """Give the terminal to another program; None where that failed, which is told."""
        try:
            return self.app.suspended(work)
        except DsliteError as error:
            self.conductor.say_error(error)
            return None

    def show_help(self) -> None:
        from dslite.app.tui.screens.help import HelpScreen

        self.app.push_screen(HelpScreen())

    def show_sessions(self) -> None:
        from dslite.app.tui.screens.sessions import SessionsPanel

        def opened(identity: str | None) -> None:
            if identity:
                self.deeds.open(lambda _: identity)

        self.app.push_screen(SessionsPanel(self.conductor), opened)

    def show_profiles(self) -> None:
        from dslite.app.tui.screens.profiles import ProfilesScreen

        def chosen(name: str | None) -> None:
            if name:
                self._run(partial(self.deeds.use_profile, name))

        self.app.push_screen(ProfilesScreen(self.conductor.settings.profile.name), chosen)

    def offer_context_overflow(self, error: DsliteError) -> None:
        """The context is full: let the user choose."""
        from dslite.app.tui.screens.dialogs import ContextOverflowDialog

        def chosen(what: Any) -> None:
            if what == "edit":
                self._run(self.conductor.edit)
            elif what is not None:
                self._run(partial(self.conductor.full.choose, what, error))

        self.app.push_screen(ContextOverflowDialog(error), chosen)

    def offer_first_run(self, ref: ModelRef, error: DsliteError) -> None:
        """The model is not here: show what can be done."""
        from dslite.app.tui.screens.first_run import FirstRunScreen

        def chosen(model: str | None) -> None:
            if model:
                self._run(partial(self.conductor.use_model, model))
            else:
                ways = f"/model {ref.name} shows the choices again, /model demo takes the demo model"
                self.conductor.say_error(DsliteError(error.message, ways))

        if not isinstance(self.app.screen, FirstRunScreen):
            self.app.push_screen(FirstRunScreen(ref, error, self.app.first_run), chosen)

    def toggle_inspector(self) -> None:
        self.app.toggle_inspector(self)

    def use_theme(self, name: str) -> None:
        self._run(partial(self.app.use_theme, name))

    def toggle_mouse(self) -> None:
        on = self.app.toggle_mouse()
        self.flash("the mouse is ours again" if on else "the mouse is the terminal's: select and copy as everywhere")

    def quit(self) -> None:
        self.app.leave(0)
