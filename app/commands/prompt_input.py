"""What the user wants answered: words, -p, files and piped text, put together."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dslite.app.commands.flags import read_text
from dslite.runtime.errors import UsageError


def read_prompt(words: Sequence[str], option: str | None, files: Sequence[Path], *, may_be_empty: bool = False) -> str:
    """The whole prompt: attached files, then piped text, a blank line, and the prompt. Raises UsageError.

    `-` among the words, or no words with a pipe on stdin, reads stdin.
    """
    if words and option is not None:
        raise UsageError("the prompt is given twice, as words and with --prompt", "give it once")
    wants_stdin = list(words) == ["-"]
    given = option if option is not None else ("" if wants_stdin else " ".join(words))
    piped = read_stdin() if wants_stdin or not sys.stdin.isatty() else ""
    attached = [f"{file}:\n{read_text(file, 'the file').rstrip()}" for file in files]
    parts = [*attached, piped.rstrip("\n") if given else piped, given]
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt.strip() and not may_be_empty:
        raise UsageError("the prompt is empty", 'ask something: dslite complete "Why is the sky blue?"')
    return prompt


def read_stdin() -> str:
    """All of stdin as text. Raises UsageError."""
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not valid UTF-8: byte 0x{data[error.start]:02x} at {error.start}", "convert it to UTF-8"
        ) from None


def read_batch(source: str) -> list[str]:
    """The lines of a batch file, `-` for stdin; blank ones are left out. Raises UsageError."""
    text = read_stdin() if source == "-" else read_text(Path(source), "the batch file")
    return [line for line in text.split("\n") if line.strip()]
