"""The title of the terminal's window: set while the application runs, and given back at its end."""

from typing import Protocol, runtime_checkable

_KEEP, _GIVE_BACK = "\x1b[22;2t", "\x1b[23;2t"  # xterm's stack of titles; other terminals ignore them


@runtime_checkable
class TitledDriver(Protocol):
    """A driver that can name its window."""

    def set_window_title(self, title: str) -> None: ...


def title_sequence(title: str, *, first: bool) -> str:
    """What sets a title (OSC 2); the `first` one keeps the title from before. Controls in it would end it, or worse."""
    shown = "".join(character for character in title if character.isprintable())
    return f"{_KEEP if first else ''}\x1b]2;{shown}\x1b\\"


def end_sequence() -> str:
    """What gives the title from before back."""
    return _GIVE_BACK
