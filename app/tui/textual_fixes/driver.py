"""Textual's driver for POSIX terminals: Esc is known at once, a paste is never keys, and `fg` redraws the screen.

A lone Esc may be the beginning of a longer key; only time tells. Textual looks at the clock ten times a second, which
would be all the time that stopping an answer may take.
"""

import os
import select
import signal
from codecs import getincrementaldecoder

from textual.drivers.linux_driver import LinuxDriver

from dslite.app.tui.textual_fixes.driver_title import end_sequence, title_sequence
from dslite.app.tui.textual_fixes.paste import PasteParser

_HANG_UP = 129
_IDLE_S = 0.1
_AFTER_KEY_S = 0.01
_LOOKS = 4  # until Textual's own wait for the rest of a key is over


class QuickDriver(LinuxDriver):
    """Looks at the clock soon after a key, and takes a terminal that has gone for a hang-up."""

    _title = ""

    def set_window_title(self, title: str) -> None:
        """Name the window, until the application ends or is suspended."""
        if title != self._title:
            self.write(title_sequence(title, first=not self._title))
            self._title = title

    def start_application_mode(self) -> None:
        super().start_application_mode()  # type: ignore[no-untyped-call]
        if self._title:  # it was suspended
            self.write(title_sequence(self._title, first=True))

    def stop_application_mode(self) -> None:
        if self._title:
            self.write(end_sequence())
        super().stop_application_mode()

    def _sigtstp_application(self, *_: object) -> None:
        """Stop the whole job, as the terminal's own Ctrl+Z does: the shell waits for its first process, not for us."""
        if self._auto_restart:
            self.suspend_application_mode()
            self._must_signal_resume = True
        os.killpg(os.getpgrp(), signal.SIGSTOP)

    def _sigcont_application(self, *_: object) -> None:
        """Take the terminal back and draw all of the screen: Textual draws only what changes."""
        if not self._auto_restart:
            return
        if not self._must_signal_resume:  # stopped by SIGSTOP: the terminal's modes may have been changed
            self.suspend_application_mode()
        self.resume_application_mode()
        self._app.call_later(self._app.refresh, layout=True)

    def run_input_thread(self) -> None:
        """Read keys until the application ends."""
        parser = PasteParser(self._debug)
        decode = getincrementaldecoder("utf-8")(errors="replace").decode
        looks = 0
        while not self.exit_event.is_set():
            ready, _, _ = select.select([self.fileno], [], [], _AFTER_KEY_S if looks else _IDLE_S)
            if ready:
                try:
                    data = os.read(self.fileno, 4096)
                except OSError:
                    data = b""
                if not data:
                    self._app.call_later(self._app.exit, _HANG_UP)
                    return
                for event in parser.feed(decode(data)):
                    self.process_message(event)
            for event in parser.tick():
                self.process_message(event)
            looks = _LOOKS if ready else max(looks - 1, 0)
