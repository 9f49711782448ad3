"""Copying: into this machine's clipboard where there is one, else by asking the terminal (OSC 52).

Nothing answers an OSC 52 request, so what goes that way is said to be sent, not copied.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from dslite.runtime.system import system_name

_WAIT_S = 2.0
OSC_52_MOST_BYTES = 74_994  # of text: xterm and others drop a longer request, of 100,000 bytes in Base64


def is_long_for_terminals(text: str) -> bool:
    """Whether terminals are likely to drop an OSC 52 request with this text."""
    return len(text.encode("utf-8", "replace")) > OSC_52_MOST_BYTES


def native_command(environment: Mapping[str, str] | None = None) -> Sequence[str] | None:
    """The program that fills the clipboard of the screen that the user sits at; None over SSH and without one."""
    environment = os.environ if environment is None else environment
    if "SSH_CONNECTION" in environment or "SSH_TTY" in environment:
        return None
    candidates: list[Sequence[str]] = []
    if system_name() == "macos":
        candidates.append(["pbcopy"])
    if environment.get("WAYLAND_DISPLAY"):
        candidates.append(["wl-copy"])
    if environment.get("DISPLAY"):
        candidates += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if "WSL_DISTRO_NAME" in environment:
        candidates.append(["clip.exe"])
    return next((command for command in candidates if shutil.which(command[0], path=environment.get("PATH"))), None)


def copy_natively(text: str, environment: Mapping[str, str] | None = None) -> bool:
    """Put text into the native clipboard; return whether that worked."""
    command = native_command(environment)
    if command is None:
        return False
    encoding = "utf-16" if command[0] == "clip.exe" else "utf-8"
    try:
        done = subprocess.run(
            command,
            input=text.encode(encoding),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_WAIT_S,
            env=dict(environment) if environment is not None else None,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
