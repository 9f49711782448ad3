"""SIGINT, SIGTERM and SIGHUP: the first one stops a command, and what it has made is kept; the second ends it at once.

No handler raises an exception. KeyboardInterrupt comes at an arbitrary place, and one that is raised in a finaliser or
in a callback of foreign code is lost. Instead:

- a command that keeps what it has made has an `Interruption`: the handler sets a flag, which its loops and waits look
  at. Until it has something to keep (it imports, asks a server, loads), it is also ended when a moment has passed.
- every other command is ended by the handler (`ending_at_once`).

A signal that is ignored when the command starts, as under `nohup`, stays ignored.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from dslite.runtime.system.signals import stop_signals

cleanups: list[Callable[[], object]] = []  # what to undo where a signal ends the process: files, a status line


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle the signals that stop a command. In a thread other than the main one Python allows no handler."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in stop_signals():
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """A context in which a signal ends the process with the signal's exit code."""
    with handled(end):
        yield


@contextmanager
def cleaned_up(cleanup: Callable[[], object]) -> Iterator[None]:
    """A context with something to undo where a signal ends the process at once."""
    cleanups.append(cleanup)
    try:
        yield
    finally:
        cleanups.remove(cleanup)


def end(number: int, _: FrameType | None = None) -> None:
    """End the process with the exit code of a signal."""
    for cleanup in reversed(cleanups):
        with suppress(Exception):
            cleanup()
    os._exit(128 + number)


class Interruption:
    """A context in which the first signal sets `flag`, and the second ends the process."""

    def __init__(self, *, grace_s: float | None = None) -> None:
        """After `grace_s` seconds the first signal ends the process too, until `protect`; None: it never does."""
        self.flag = threading.Event()
        self._signal: int | None = None
        self._grace_s = grace_s
        self._timer: threading.Timer | None = None

    def protect(self) -> None:
        """From here on there is something to keep: the command ends itself after the first signal."""
        self._grace_s = None
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> "Interruption":
        self._handlers = ExitStack()
        self._handlers.enter_context(handled(self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self.protect()
        self._handlers.close()

    @property
    def exit_code(self) -> int | None:
        """130 after SIGINT, 143 after SIGTERM, 129 after SIGHUP, None without a signal."""
        return None if self._signal is None else 128 + self._signal

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            end(number)
        self._signal = number
        self.flag.set()
        if self._grace_s is not None:
            self._timer = threading.Timer(self._grace_s, end, [number])
            self._timer.daemon = True
            self._timer.start()
