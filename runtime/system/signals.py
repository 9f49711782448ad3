"""The signals that end a program, as far as the system has them."""

import signal

_STOP = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # SIGBREAK is Windows' Ctrl+Break, SIGHUP a closed terminal


def stop_signals() -> list[signal.Signals]:
    """Ctrl+C, the request to end, and the closed terminal or Ctrl+Break."""
    return existing(*_STOP)


def existing(*names: str) -> list[signal.Signals]:
    """Those of the named signals that this system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
