"""The application: themes, keys of the user, the inspector, and giving the terminal back whatever happens."""

import asyncio
import contextlib
import gc
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual import constants
from textual.app import App, SuspendNotSupported, SystemCommand
from textual.binding import BindingType
from textual.driver import Driver
from textual.filter import LineFilter
from textual.screen import Screen

from dslite.app.chat.launch import ChatLaunch
from dslite.app.errors import SessionsError
from dslite.app.tui.control.controller import ChatController
from dslite.app.tui.control.engine_worker import EngineWorker
from dslite.app.tui.screens.chat import FLASH_S, LOW, ChatScreen
from dslite.app.tui.style import keys
from dslite.app.tui.style.no_color import NoColorFilter
from dslite.app.tui.style.themes import DEFAULT, THEMES
from dslite.app.tui.textual_fixes.frame_rate import BESIDE_A_CPU, BESIDE_ANOTHER, RedrawThrottle
from dslite.app.tui.textual_fixes.memory import free_closed_widgets
from dslite.app.tui.widgets.inspector import Inspector
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.paths import log_dir
from dslite.runtime.system import system_name

T = TypeVar("T")
_TICK_S = 1 / 12
_ESCAPE_DELAY_S = 0.025  # as vim and tmux users set it: Textual's 100 ms would be all the time that Esc may take
_SIGNALS = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)


class ChatApp(App[int]):
    """`dslite chat`. What `run` returns is the exit code."""

    CSS_PATH = str(Path(__file__).parents[2] / "assets" / "dslite.tcss")
    TITLE = "dslite"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    VERTICAL_BREAKPOINTS = [(0, "-few-lines"), (LOW, "-enough-lines")]  # noqa: RUF012 - Textual declares it so
    BINDINGS: ClassVar[list[BindingType]] = []

    def __init__(self, start: ChatLaunch, *, driver_class: type[Driver] | None = None) -> None:
        super().__init__(driver_class=driver_class)
        free_closed_widgets()
        self.no_color = bool(os.environ.get("NO_COLOR"))  # Textual takes an empty one for a wish
        self._colourless = NoColorFilter()
        self.start = start
        self.first_run = start.first_run
        self.worker = EngineWorker(start.open_model)
        self.worker.open(start.ref)  # before any message: one that is sent early waits behind it
        self.inspector: Inspector | None = None
        self.crash: BaseException | None = None
        self._pace = RedrawThrottle()
        self._mouse_on = True
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = start.looks.theme if start.looks.theme in self.available_themes else DEFAULT
        self.set_keymap(dict(start.looks.keymap))
        start.recorder.told = self.saving_changed

    def get_default_screen(self) -> Screen[None]:
        self.chat = ChatScreen(self._lead)
        return self.chat

    def _lead(self, screen: ChatScreen) -> ChatController:
        start = self.start
        return ChatController(screen, self.worker, start.recorder, start.settings, start.ref, start.looks.when_full)

    @property
    def conductor(self) -> ChatController:
        return self.chat.conductor

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # Not on Windows, and not where the screen runs in another thread.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.leave, 128 + number)
        self.call_after_refresh(self._painted)

    def _painted(self) -> None:
        """The first picture is on screen: now the heavy work may begin."""
        self.collect()
        self.settle()
        conductor = self.conductor
        if not self.start.looks.mouse:
            self.toggle_mouse()
        conductor.lookup(lambda store: store.inputs(), self.chat.prompt.earlier.extend)
        if self.start.resume is not None:
            self.chat.deeds.open(self.start.resume)
        for error in self.start.warnings:
            conductor.say_error(error)
        self.worker.start()
        self._timer = self.set_interval(_TICK_S, self._tick)

    def _tick(self) -> None:
        """Take what came. Text waits where drawing it now would cost the model or the keys too much."""
        facts = self.conductor.status.facts
        share = BESIDE_A_CPU if facts is not None and facts.device == "cpu" else BESIDE_ANOTHER
        self.conductor.listener.tick(draw=self._pace.due(share))

    def settle(self) -> None:
        """What exists by now stays: the collector need not walk it in every pause, 80 ms with a model loaded."""
        if not self.is_headless:  # a process of tests has other things to collect
            gc.freeze()

    def collect(self) -> None:
        """Much has just become useless, in cycles that only the collector finds."""
        if not self.is_headless:
            gc.collect()

    def saving_changed(self, error: DsliteError | None) -> None:
        """Called by the recorder's thread."""
        self.call_later(self._saving_changed, error)

    def _saving_changed(self, error: DsliteError | None) -> None:
        self.conductor.status.unsaved = error is not None
        if error is not None:
            self.conductor.say_error(SessionsError(f"this chat is not saved: {error.message}", error.remedy))
        else:
            self.conductor.say("saving works again: nothing is missing")
        self.chat.refresh_lines()

    # Leaving.

    def leave(self, code: int) -> None:
        """Stop, save what came, and give the terminal back."""
        conductor = self.conductor
        conductor.queue.clear()
        if (reply := conductor.reply) is not None:
            reply.job.cancel.set()
            conductor.listener.tick()
            if conductor.reply is reply and reply.node.content and reply.then is None:
                reply.node.finish_reason, reply.node.growing = "interrupted", False
                reply.node.token_ids = tuple(reply.ids)
                reply.node.info = {"model": conductor.model_name}
                conductor.recorder.finish(conductor.dialogue, reply.node)
        self.exit(code)

    async def action_quit(self) -> None:
        """Ctrl+Q, Textual's own."""
        self.leave(0)

    def quits_now(self) -> None:
        """Ctrl+C on a panel, which may hide the line of the chat that says so."""
        if not self.chat.quits_now():
            self.notify("Ctrl+C again quits", timeout=FLASH_S)

    def _handle_exception(self, error: Exception) -> None:
        self.crash = error
        write_log(error)
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
        if os.name != "posix" or os.getpgrp() == os.getsid(0):  # no shell has started this job
            self.chat.flash("no shell waits for this program; Ctrl+D quits")
        else:
            super().action_suspend_process()

    def toggle_mouse(self) -> bool:
        """Take the mouse or leave it to the terminal; return whether it is ours."""
        self._mouse_on = not self._mouse_on
        name = "_enable_mouse_support" if self._mouse_on else "_disable_mouse_support"
        change = getattr(self._driver, name, None)
        if change is not None:
            change()
        return self._mouse_on

    # ChatConfig.

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [self._colourless] if self.no_color else super().get_line_filters()

    def use_theme(self, name: str) -> None:
        """A theme by its name, or the next one. Raises UsageError."""
        names = [theme.name for theme in THEMES]
        if name and name not in names:
            raise UsageError(f"there is no theme {name}", f"choose one of {', '.join(names)}")
        after = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else DEFAULT
        self.theme = name or after
        self.chat.flash(f"theme {self.theme}")

    def watch_theme(self) -> None:
        if self.is_running:
            self.call_after_refresh(self._restyle)

    def _restyle(self) -> None:
        self.chat.transcript.restyle()
        self.chat.status_line.restyle()
        self.chat.title_line.refresh()
        self.chat.refresh_lines()

    def toggle_inspector(self, screen: ChatScreen) -> None:
        if self.inspector is None:
            self.inspector = Inspector(self.conductor)
            screen.query_one("#body").mount(self.inspector)
        else:
            self.inspector.remove()
            self.inspector = None
        self.worker.watched = self.inspector is not None
        screen.set_class(self.inspector is not None, "inspecting")

    def inspector_tick(self) -> None:
        if self.inspector is not None and self.inspector.is_attached:
            self.inspector.show()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything that a key does, for the palette."""
        if not isinstance(screen, ChatScreen):
            return
        for key in keys.KEYS:
            if key.in_palette:
                title = key.help.split(";")[0].split(":")[0]
                yield SystemCommand(title, f"{keys.label(key.keys)} · {key.help}", self._doing(key.action))
        for name in (theme.name for theme in THEMES):
            yield SystemCommand(f"Theme {name}", "Change the colours", lambda name=name: self.use_theme(name))
        yield SystemCommand("Continue the answer", "/continue", self._doing("command('go_on')"))
        yield SystemCommand("Quit", "Ctrl+D · /quit", lambda: self.leave(0))

    def _doing(self, action: str) -> Callable[[], None]:
        async def run() -> None:
            await self.chat.run_action(action)

        def soon() -> None:
            self.call_later(run)

        return soon


def write_log(error: BaseException) -> Path | None:
    """Put a traceback into dslite.log; return where, or None where that is not possible."""
    path = log_dir() / "dslite.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S\n") + "".join(traceback.format_exception(error)) + "\n")
    except OSError:
        return None
    return path


def _driver() -> type[Driver] | None:
    """QuickDriver, which needs termios; None, which is Textual's choice, on Windows."""
    if system_name() == "windows":
        return None
    from dslite.app.tui.textual_fixes.driver import QuickDriver

    return QuickDriver


def run_chat(start: ChatLaunch) -> int:
    """Hold the chat on this terminal; return the exit code."""
    if "ESCDELAY" not in os.environ:
        constants.ESCAPE_DELAY = _ESCAPE_DELAY_S  # type: ignore[misc]
    app = ChatApp(start, driver_class=_driver())
    try:
        code = app.run()
    finally:
        app.worker.close()
        start.recorder.close()
    if app.crash is not None:
        raise app.crash
    return code if code is not None else int(app.return_code or 0)
