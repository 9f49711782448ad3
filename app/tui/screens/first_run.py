"""The first run: the model is not on this machine yet. Shows the machine, the size of a download, and the choices."""

import math
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import OptionList, ProgressBar, Static
from textual.widgets.option_list import Option

from dslite.app.chat.model_setup import FirstRun, model_folder
from dslite.app.terminal.console import error_text
from dslite.app.tui.screens.dialogs import LineDialog
from dslite.app.tui.screens.modal import ModalPanel
from dslite.app.tui.transcript.sanitize import inert
from dslite.app.tui.widgets.status import size
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.events import Downloading, Found, Present
from dslite.runtime.units import time_text

if TYPE_CHECKING:
    from dslite.runtime.events import PullEvent


class FirstRunScreen(ModalPanel[str | None]):
    """Returns the model to open, or None when the user leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "pause_or_leave", "Pause, or leave", show=False),
        Binding("p", "pause_or_go_on", "Pause, or go on", show=False),
    ]

    def __init__(self, ref: ModelRef, error: DsliteError, first_run: FirstRun) -> None:
        super().__init__()
        self._ref = ref
        self._error = error
        self._first_run = first_run
        self._cancel: threading.Event | None = None  # of the download that runs
        self._found: Found | None = None
        self._begun = False  # some bytes were fetched
        self._shown_at = math.inf  # when the choices were drawn: an Enter before that was meant for the chat

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="first-run", classes="panel"):
            yield Static(Text(f"Welcome to dslite · {inert(self._ref.name)}", "bold"))
            yield Static(Text(inert(self._error.message)), id="why")
            yield Static(Text("Looking at this machine …", "dim"), id="machine")
            yield OptionList(
                Option(Text("Download the model"), id="download"),
                Option(Text("Try the demo model at once"), id="demo"),
                Option(Text("Use a folder on this machine"), id="folder"),
                Option(Text("Leave it for now"), id="leave"),
            )
            yield Static(Text("Up, Down and Enter choose · Esc leaves", "dim"))
            yield ProgressBar(id="progress", show_eta=False)
            yield Static(id="download-text")

    def on_mount(self) -> None:
        self.query_one("#progress").display = False
        self.query_one(OptionList).focus()
        self.call_after_refresh(self._show_choices)
        self.run_worker(self._describe, thread=True, group="describe", exit_on_error=False)

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_choices)

    def _show_choices(self) -> None:
        """Scroll the choices into view on a low terminal; an Enter counts only after that."""
        if self._cancel is None and self.query(OptionList):
            self.query_one(OptionList).scroll_visible(animate=False, top=True)
            self.call_after_refresh(self._on_shown)

    def _on_shown(self) -> None:
        self._shown_at = min(self._shown_at, time.monotonic())

    def on_unmount(self) -> None:
        if self._cancel is not None:
            self._cancel.set()

    def _describe(self) -> None:
        try:
            lines = self._first_run.describe(self._ref)
        except DsliteError as error:
            lines = [error.message, error.remedy]
        self.app.call_from_thread(self._show_machine, lines)
        try:
            with closing(self._first_run.pull(self._ref, threading.Event())) as events:
                self.app.call_from_thread(
                    self._show_size, next(events)
                )  # closed at its first event: nothing is fetched
        except DsliteError as error:
            self.app.call_from_thread(self._show_size, error)

    def _show_size(self, found: "PullEvent | DsliteError") -> None:
        """Show the size of a download, or why there is none; not while one runs."""
        if self._cancel is None and self.is_attached:
            if isinstance(found, DsliteError):
                self._show_text(error_text(found))
            elif isinstance(found, Found):
                self._show_text(_plan(found))

    def _show_machine(self, lines: list[str]) -> None:
        if self.is_attached:
            self.query_one("#machine", Static).update(Text(inert("\n".join(lines))))

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        if event.time < self._shown_at:
            return
        match event.option_id:
            case "download" if self._cancel is None:
                self._go_on()
            case "download":
                self._pause()
            case "demo":
                self.dismiss("demo")
            case "folder":
                self._ask_for_folder()
            case _:
                self.dismiss(None)

    def _ask_for_folder(self, text: str = "", problem: str = "") -> None:
        def submitted(folder: str | None) -> None:
            if folder is None:
                return
            try:
                found = model_folder(folder)
            except DsliteError as error:
                self._ask_for_folder(folder, error_text(error))
            else:
                self.dismiss(str(found))

        question = "Folder in Hub layout (config.json, *.safetensors …)"
        self.app.push_screen(LineDialog(question, text, problem=problem), submitted)

    # The download.

    def action_pause_or_leave(self) -> None:
        """Esc pauses a download; where it is pausing already, it leaves, and does not wait for the network."""
        if self._cancel is None or self._cancel.is_set():
            self.dismiss(None)
        else:
            self._pause()

    def action_pause_or_go_on(self) -> None:
        """P pauses and resumes a download, but does not begin one."""
        if self._cancel is not None:
            self._pause()
        elif self._begun:
            self._go_on()

    def _pause(self) -> None:
        if self._cancel is not None:
            self._cancel.set()
            self._show_text("pausing …")

    def _go_on(self) -> None:
        """Begin or resume the download."""
        cancel = self._cancel = threading.Event()
        self._show_text("asking the Hub …")
        self.call_after_refresh(self.query_one("#download-text").scroll_visible, animate=False)
        self._label("Pause the download")
        self.run_worker(lambda: self._download(cancel), thread=True, group="download", exit_on_error=False)

    def _download(self, cancel: threading.Event) -> None:
        end: DsliteError | None = None
        present = False
        try:
            for event in self._first_run.pull(self._ref, cancel):
                present |= isinstance(event, Present)
                self.app.call_from_thread(self._on_pull_event, event)
        except DsliteError as error:
            end = error
        except RuntimeError:
            return  # the application has ended
        self.app.call_from_thread(self._on_pull_ended, end, present)

    def _on_pull_event(self, event: Any) -> None:
        if not self.is_attached:
            return
        if isinstance(event, Found):
            self._found = event
            self._show_text(_plan(event))
        elif isinstance(event, Downloading):
            self._begun = True
            bar = self.query_one("#progress", ProgressBar)
            bar.display = True
            bar.update(total=max(event.all_total_bytes, 1), progress=event.all_done_bytes)
            self._show_text("\n".join(filter(None, (_plan(self._found) if self._found else "", _progress(event)))))

    def _on_pull_ended(self, error: DsliteError | None, present: bool) -> None:
        self._cancel = None
        if not self.is_attached:
            return
        if present:
            self.dismiss(self._ref.name)
            return
        self._label("Go on with the download" if self._begun else "Download the model")
        if error is not None:
            self._show_text(error_text(error))
            self.call_after_refresh(self.query_one("#download-text").scroll_visible, animate=False)
        else:
            self._show_text("paused; what came is kept" if self._begun else "stopped before anything came")

    def _label(self, text: str) -> None:
        self.query_one(OptionList).replace_option_prompt("download", Text(text))

    def _show_text(self, text: str) -> None:
        self.query_one("#download-text", Static).update(Text(inert(text)))


def _plan(found: Found) -> str:
    missing = f"{size(found.missing_bytes)} of {size(found.total_bytes)} to download"
    room = f"{size(found.free_bytes)} free in {found.place}"
    short = found.missing_bytes - found.free_bytes
    lack = (
        [f"not enough room: free {size(short)} more, or set HF_HOME to a folder on another disk"] if short > 0 else []
    )
    return "\n".join([f"{missing} · {room}", *lack, f"licence: {found.licence} · {found.licence_url}"])


def _progress(event: Downloading) -> str:
    share = event.all_done_bytes / max(event.all_total_bytes, 1)
    speed = f"{size(round(event.bytes_per_s))}/s" if event.bytes_per_s else event.stage
    left = f" · {time_text(event.left_s)} left" if event.left_s is not None else ""
    note = f"\n{event.note}" if event.note else ""
    return f"{share:.0%} · {size(event.all_done_bytes)} · {speed}{left} · {event.file}{note}\nP pauses"
