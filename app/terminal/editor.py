"""Text in the user's own editor: $VISUAL, $EDITOR, or vi."""

import os
import shlex
import signal
import subprocess
import tempfile
from pathlib import Path

from dslite.app.terminal.signals import end, handled
from dslite.model.errors import DsliteError


def edit_text(text: str, *, name: str = "dslite.md") -> str:
    """Open a text in the editor and return what was saved; `name` tells the editor its kind. Raises DsliteError."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="dslite-") as folder:
        file = Path(folder) / name
        file.write_text(text, encoding="utf-8")
        try:
            with handled(_leave_to_editor):
                code = subprocess.run([*shlex.split(command), str(file)], check=False).returncode
            edited = file.read_bytes().decode("utf-8")
        except (OSError, ValueError) as error:
            raise DsliteError(f"the editor {command!r} did not work: {error}", "set VISUAL or EDITOR") from None
    if code:
        raise DsliteError(f"the editor {command!r} ended with {code}, so nothing was changed")
    return edited


def _leave_to_editor(number: int, _: object) -> None:
    """Ctrl+C on the terminal reaches the editor too, and is meant for it."""
    if number != signal.SIGINT:
        end(number)
