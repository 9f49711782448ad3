"""The files of the message that is being written, above the input."""

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Static

from dslite.app.sessions.attachments import Attachment
from dslite.app.tui.transcript.sanitize import one_line

_MOST_SHOWN = 4


class AttachmentLine(Static):
    """A line for each file, and what is left of the context; hidden while there are none."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.display = False

    def show(self, files: Sequence[Attachment], room: int | None) -> None:
        """`room`: tokens that the context has left without them; None where it is not known."""
        self.display = bool(files)
        lines = [one_line(file.label) for file in files[:_MOST_SHOWN]]
        if len(files) > _MOST_SHOWN:
            lines.append(f"and {len(files) - _MOST_SHOWN} more files")
        tokens = [file.tokens for file in files]
        if files and room is not None and None not in tokens:
            left = room - sum(filter(None, tokens))
            lines[-1] += f" · room for {left:,} more" if left > 0 else f" · {-left:,} tokens too many for the context"
        text = Text("\n", end="").join([Text(f"+ {line}", end="") for line in lines])
        self.update(text)
