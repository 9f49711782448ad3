"""The signals that end a program, as far as the system has them."""

import os
import signal
from types import ModuleType
from typing import Any

_STOP = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # SIGBREAK is Windows' Ctrl+Break, SIGHUP a closed terminal


def stop_signals(source: ModuleType | Any = signal) -> list[signal.Signals]:
    """Ctrl+C, the request to end, and the closed terminal or Ctrl+Break, as far as `source` has them."""
    return [getattr(source, name) for name in _STOP if hasattr(source, name)]


def can_suspend() -> bool:
    """Whether a shell waits for this process, so that it may be stopped. Windows has no such thing."""
    return hasattr(os, "getsid") and os.getpgrp() != os.getsid(0)
