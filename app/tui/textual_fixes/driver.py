"""Textual's driver for POSIX terminals, with keys read so that Esc is known at once.

A lone Esc may be the beginning of a longer key; only time tells. Textual looks at the clock ten times a second, which
would be all the time that stopping an answer may take.
"""

import os
import select
from codecs import getincrementaldecoder

from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver

_HANG_UP = 129
_IDLE_S = 0.1
_AFTER_KEY_S = 0.01
_LOOKS = 4  # until Textual's own wait for the rest of a key is over


class QuickDriver(LinuxDriver):
    """ChatConfig at the clock soon after a key, and takes a terminal that has gone for a hang-up."""

    def run_input_thread(self) -> None:
        """Read keys until the application ends."""
        parser = XTermParser(self._debug)
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
