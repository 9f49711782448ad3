"""The application: it joins screens and panels, knows themes and signals, and gives the terminal back at every end."""

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual import constants, events, on
from textual.app import SuspendNotSupported, SystemCommand
from textual.binding import BindingType
from textual.driver import Driver
from textual.filter import LineFilter
from textual.screen import Screen

from dslite.app.chat.engine_worker import EngineWorker
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.message_tree import MessageTree
from dslite.app.terminal import clipboard
from dslite.app.terminal.console import visible
from dslite.app.terminal.log_file import log_error
from dslite.app.tui import messages
from dslite.app.tui.control.view import HINT_S
from dslite.app.tui.panels import PanelApp
from dslite.app.tui.screens.chat import LOW, ChatScreen
from dslite.app.tui.style import keys
from dslite.app.tui.style.no_color import NoColorFilter
from dslite.app.tui.style.themes import DEFAULT, THEMES
from dslite.app.tui.textual_fixes.driver_title import TitledDriver
from dslite.app.tui.textual_fixes.frame_rate import BESIDE_A_CPU, BESIDE_ANOTHER, RedrawThrottle
from dslite.app.tui.textual_fixes.memory import free_closed_widgets
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.system import system_name
from dslite.runtime.system.signals import can_suspend, stop_signals

T = TypeVar("T")
_TICK_S = 1 / 12
_ESCAPE_DELAY_S = 0.025  # as vim and tmux users set it: Textual's 100 ms would be all the time that Esc may take
_LONG_S = 10.0  # an answer that takes longer may be waited for elsewhere
_QUIT_HINT = "Ctrl+C again quits; so do Ctrl+D and /quit"


class ChatApp(PanelApp):
    """`dslite chat`. What `run` returns is the exit code."""

    CSS_PATH = str(Path(__file__).parents[2] / "assets" / "dslite.tcss")
    TITLE = "dslite"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    VERTICAL_BREAKPOINTS = [(0, "-few-lines"), (LOW, "-enough-lines")]  # noqa: RUF012 - Textual declares it so
    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self, launch: ChatLaunch, *, driver_class: type[Driver] | None = None) -> None:
        super().__init__(driver_class=driver_class)
        free_closed_widgets()
        self.no_color = bool(os.environ.get("NO_COLOR"))  # unlike Textual, an empty value does not count
        self._no_color_filter = NoColorFilter()
        self.launch = launch
        self.worker = EngineWorker(launch.loader)
        self.crash: BaseException | None = None
        self._throttle = RedrawThrottle()
        self._mouse_on = True
        self._quit_armed = False  # Ctrl+C was pressed, and nothing since
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = launch.config.theme if launch.config.theme in self.available_themes else DEFAULT
        self.set_keymap(dict(launch.config.keymap))

    def get_default_screen(self) -> Screen[None]:
        self.chat = ChatScreen(self.launch, self.worker)
        return self.chat

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            if number == signal.SIGINT:
                continue  # Ctrl+C is a key here
            # Not on Windows, and not where the screen runs in another thread.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.leave, 128 + number)
        self.call_after_refresh(self._painted)

    def _painted(self) -> None:
        """The first picture is on screen: now the heavy work may begin."""
        self._collect()
        self._settle()
        controller = self.controller
        if not self.launch.config.mouse:
            self._toggle_mouse()
        controller.saved.lookup(lambda store: store.inputs(), self.chat.prompt.earlier.extend)
        if self.launch.resume is not None:
            controller.load(self.launch.resume)
        for error in self.launch.warnings:
            self.chat.view.error(error)
        self.worker.start()
        self._timer = self.set_interval(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Take events. Text waits where drawing it now would cost the model or the keys too much."""
        stats = self.controller.status.stats
        share = BESIDE_A_CPU if stats is not None and stats.device == "cpu" else BESIDE_ANOTHER
        self.controller.tick(draw=self._throttle.due(share))

    @on(messages.ModelLoaded)
    def _settle(self) -> None:
        """What exists by now stays: the collector need not walk it in every pause, 80 ms with a model loaded."""
        if not self.is_headless:  # a process of tests has other things to collect
            gc.freeze()

    @on(messages.ConversationChanged)
    def _collect(self) -> None:
        """Much has just become useless, in cycles that only the collector finds."""
        if not self.is_headless:
            gc.collect()

    @on(messages.AnswerFinished)
    def _ring(self, event: messages.AnswerFinished) -> None:
        """Call back who looks at another window. Terminals that do not report the focus seem to have it."""
        if self.launch.config.bell and not self.app_focus and event.seconds >= _LONG_S:
            self.bell()

    @on(messages.TitleChanged)
    def _name_window(self, event: messages.TitleChanged) -> None:
        if isinstance(self._driver, TitledDriver):
            self._driver.set_window_title(f"{event.title} · dslite")

    # Leaving.

    def leave(self, code: int) -> None:
        """Stop, save what came, and give the terminal back."""
        self.controller.close()
        self.exit(code)

    @on(messages.Quit)
    def _quit(self, event: messages.Quit) -> None:
        self.leave(event.code)

    async def action_quit(self) -> None:
        """Ctrl+Q, Textual's own."""
        self.leave(0)

    async def on_event(self, event: events.Event) -> None:
        """Any input between two Ctrl+C means that the first was not the beginning of the end."""
        if isinstance(event, events.Paste | events.MouseDown) or (
            isinstance(event, events.Key) and event.key != "ctrl+c"
        ):
            self._quit_armed = False
        await super().on_event(event)

    @on(messages.Interrupt)
    def _interrupt(self, event: messages.Interrupt) -> None:
        if event.selection:
            self._copy_text(messages.CopyText(event.selection, "the selection"))
        elif self._quit_armed:
            self.leave(0)
        else:
            self._quit_armed = True
            self.chat.view.hint(_QUIT_HINT)
            self.set_timer(HINT_S, self._disarm_quit)
            if self.screen is not self.chat:  # a panel may hide the status line
                self.notify("Ctrl+C again quits", timeout=HINT_S)

    def _disarm_quit(self) -> None:
        self._quit_armed = False

    def _handle_exception(self, error: Exception) -> None:
        self.crash = error
        log_error(error)
        super()._handle_exception(error)

    # The terminal.

    def suspended(self, work: Callable[[], T]) -> T:
        """Run another program in the terminal. Raises UsageError."""
        failure: DsliteError | None = None
        result: T | None = None
        try:
            with self.suspend():
                try:  # an error that leaves the block would leave the terminal suspended
                    result = work()
                except DsliteError as error:
                    failure = error
        except SuspendNotSupported:
            raise UsageError("this terminal cannot be given to another program") from None
        if failure is not None:
            raise failure
        assert result is not None
        return result

    def action_suspend_process(self) -> None:
        """Ctrl+Z: back to the shell, where one waits."""
        if not can_suspend():
            self.chat.view.hint("no shell waits for this program; Ctrl+D quits")
        else:
            super().action_suspend_process()

    @on(messages.EditInEditor)
    def _edit(self, event: messages.EditInEditor) -> None:
        from dslite.app.terminal.editor import edit_text

        text = event.text or self.chat.prompt.text

        def edit() -> None:
            written = self.suspended(lambda: edit_text(text))
            self.chat.view.put_into_input(written.rstrip("\n"))

        self.chat.commands.attempt(edit)

    @on(messages.CopyText)
    def _copy_text(self, event: messages.CopyText) -> None:
        self.run_worker(self._copy(event.text, event.what), group="copy", exclusive=True)

    async def _copy(self, text: str, what: str) -> None:
        if await asyncio.to_thread(clipboard.copy_natively, text):
            self.chat.view.hint(f"copied {what} to the clipboard")
        else:
            self.copy_to_clipboard(text)
            long, short = "it may be too long: many take 74 kB", "not every terminal takes it"
            doubt = long if clipboard.is_long_for_terminals(text) else short
            self.chat.view.hint(f"sent {what} to the terminal's clipboard (OSC 52); {doubt}")

    @on(messages.ToggleMouse)
    def _toggle_mouse(self) -> None:
        self._mouse_on = not self._mouse_on
        name = "_enable_mouse_support" if self._mouse_on else "_disable_mouse_support"
        change = getattr(self._driver, name, None)
        if change is not None:
            change()
        ours, theirs = "the mouse is ours again", "the mouse is the terminal's: select and copy as everywhere"
        self.chat.view.hint(ours if self._mouse_on else theirs)

    # Themes.

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [self._no_color_filter] if self.no_color else super().get_line_filters()

    @on(messages.UseTheme)
    def _use_theme(self, event: messages.UseTheme) -> None:
        names = [theme.name for theme in THEMES]
        after = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else DEFAULT
        self.theme = event.name or after
        self.chat.view.hint(f"theme {self.theme}")

    def watch_theme(self) -> None:
        if self.is_running:
            self.call_after_refresh(self._restyle)

    def _restyle(self) -> None:
        self.chat.transcript.restyle()
        self.chat.status_line.restyle()
        self.chat.title_line.refresh()
        self.chat.refresh_lines()

    # The palette.

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything that a key or a command does."""
        if not isinstance(screen, ChatScreen):
            return
        run = self._later
        for key in keys.KEYS:
            if key.in_palette:
                title = key.help.split(";")[0].split(":")[0]
                yield SystemCommand(title, f"{keys.label(key.keys)} · {key.help}", run(key.action))
        for title, text, help in keys.PREFILLED_COMMANDS:
            yield SystemCommand(title, help, lambda text=text: screen.view.put_into_input(text))
        for name in (theme.name for theme in THEMES):
            yield SystemCommand(f"Theme {name}", "Change the colours", lambda name=name: self._theme(name))
        for title, name, help in keys.KEYLESS_COMMANDS:
            yield SystemCommand(title, help, run(f"command('{name}')"))
        yield SystemCommand("Quit", "Ctrl+D · /quit", lambda: self.leave(0))

    def _theme(self, name: str) -> None:
        self._use_theme(messages.UseTheme(name))

    def _later(self, action: str) -> Callable[[], None]:
        async def run() -> None:
            await self.chat.run_action(action)

        def soon() -> None:
            self.call_later(run)

        return soon


def _driver() -> type[Driver] | None:
    """QuickDriver, which needs termios; None, which is Textual's choice, on Windows."""
    if system_name() == "windows":
        return None
    from dslite.app.tui.textual_fixes.driver import QuickDriver

    return QuickDriver


def resume_hint(tree: MessageTree) -> str:
    """How to come back to a chat; empty where nothing was saved."""
    if tree.id is None or not tree.path():
        return ""
    return f"{visible(tree.title or 'This chat')} is saved: dslite chat -c goes on, or --session {tree.id}"


def run_chat(launch: ChatLaunch) -> int:
    """Hold the chat on this terminal; return the exit code."""
    if "ESCDELAY" not in os.environ:
        constants.ESCAPE_DELAY = _ESCAPE_DELAY_S  # type: ignore[misc]
    app = ChatApp(launch, driver_class=_driver())
    try:
        code = app.run()
    finally:
        app.worker.close()
        launch.writer.close()
    if app.crash is not None:
        raise app.crash
    if farewell := resume_hint(app.controller.tree):
        print(farewell)
    return code if code is not None else int(app.return_code or 0)
