"""A terminal to run a program in: what it writes is kept as a screen, keys are what a keyboard sends."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

from support.paths import path_variables

KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "up": "\x1b[A",
    "down": "\x1b[B",
    "right": "\x1b[C",
    "left": "\x1b[D",
    "backspace": "\x7f",
    "shift+tab": "\x1b[Z",
    "alt+enter": "\x1b\r",
    "f1": "\x1bOP",
    "f2": "\x1bOQ",
    "f3": "\x1bOR",
    "pageup": "\x1b[5~",
    "pagedown": "\x1b[6~",
}
PATIENCE_S = 60.0  # for a condition; a loaded machine is slow, not broken


class Terminal:
    """A program on a pty of a size. `raw` is all that it wrote."""

    def __init__(
        self, command: Sequence[str], *, size: tuple[int, int] = (100, 30), environment: Mapping[str, str] | None = None
    ) -> None:
        columns, lines = size
        base = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        env = {**base, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8", **(environment or {})}
        self._process = pexpect.spawn(command[0], list(command[1:]), dimensions=(lines, columns), env=env, timeout=None)
        self._process.delaybeforesend = None  # pexpect would wait 50 ms before every key
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = bytearray()
        self._drawn = 0

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def take(self, seconds: float = 0.05) -> bool:
        """Take what the program has written into `raw` alone; return whether it still runs."""
        try:
            self.raw += self._process.read_nonblocking(1 << 16, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        return True

    def pump(self, seconds: float = 0.05) -> bool:
        """Take what the program has written, and draw it; return whether it still runs."""
        running = self.take(seconds)
        # pyte takes the end of a kitty or DEC request for text: it knows neither.
        self._stream.feed(_without_requests(self.raw[self._drawn :]))
        self._drawn = len(self.raw)
        return running

    @property
    def text(self) -> str:
        """What is on screen."""
        return "\n".join(line.rstrip() for line in self.screen.display)

    def wait(self, condition: Callable[[], object] | str, *, patience: float = PATIENCE_S) -> None:
        """Until a condition holds or a text is on screen. Fails with the screen otherwise."""
        holds = (lambda: condition in self.text) if isinstance(condition, str) else condition
        end = time.monotonic() + patience
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"not reached: {condition}\n{self.text}")
            if not self.pump():
                if holds():
                    return
                raise AssertionError(f"ended before: {condition}\n{self.text}\n{bytes(self.raw[-2000:])!r}")

    def press(self, *names: str) -> None:
        """Keys by name, `ctrl+x`, or characters."""
        for name in names:
            if name.startswith("ctrl+"):
                self._process.send(chr(ord(name[-1]) & 0x1F))
            else:
                self._process.send(KEYS.get(name, name))

    def type(self, text: str) -> None:
        self._process.send(text)

    def paste(self, text: str) -> None:
        """As a terminal with bracketed paste."""
        self._process.send(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        self._process.setwinsize(lines, columns)
        self.screen.resize(lines, columns)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> int:
        """Wait for the end of the program; return its exit code, or minus the signal."""
        deadline = time.monotonic() + PATIENCE_S
        while self.pump():
            if time.monotonic() > deadline:
                raise AssertionError(f"it does not end\n{self.text}")
        self._process.wait()
        if self._process.signalstatus is not None:
            return -int(self._process.signalstatus)
        return int(self._process.exitstatus)

    def close(self) -> None:
        """End the program, whatever it does."""
        if self._process.isalive():
            self._process.kill(signal.SIGKILL)
        self._process.close(force=True)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def restored(self) -> bool:
        """Whether the last word to the terminal was: leave the other screen, show the cursor, no mouse, no paste."""
        pairs = ((b"\x1b[?1049", b"l"), (b"\x1b[?25", b"h"), (b"\x1b[?1000", b"l"), (b"\x1b[?2004", b"l"))
        return all(self.raw[self.raw.rfind(mode) + len(mode) :][:1] == end for mode, end in pairs)


def _without_requests(data: bytearray) -> bytes:
    return re.sub(rb"\x1b\[[<>?][0-9;]*(?:u|\$p)", b"", bytes(data))


def dslite(*arguments: str, home: Path, size: tuple[int, int] = (100, 30), **environment: str) -> Terminal:
    """dslite on a terminal, with all its files in a folder of their own."""
    command = [str(Path(sys.executable).parent / "dslite"), *arguments]
    return Terminal(
        command, size=size, environment={**path_variables(home), "HF_HOME": str(home / "hf"), **environment}
    )


def fake_chat(home: Path, *, size: tuple[int, int] = (100, 30), **options: object) -> Terminal:
    """The chat with a fake model (support/fake_chat.py), its conversations in `home`."""
    command = [sys.executable, "-m", "support.fake_chat", json.dumps({"data": str(home), **options})]
    return Terminal(
        command, size=size, environment={**path_variables(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    )
